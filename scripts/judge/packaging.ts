import { Ajv } from 'ajv';
import formats from 'ajv-formats';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { layOutMcpb } from '../build/mcpb.mjs';
import type { Ran } from './npx.ts';
import { npx } from './npx.ts';
import type { Finding } from './verdict.ts';

const MCPB = '@anthropic-ai/mcpb@2.1.2';
const SERVER_SCHEMA = 'tests/conformance/server.schema.json';

/** The bundle for clients that install by one click. */
export async function judgeMcpb(directory: string): Promise<Finding[]> {
  const folder = join(directory, 'mcpb');
  const file = join(directory, 'gantry.mcpb');
  await layOutMcpb(folder);
  const validated = await npx([MCPB], ['mcpb', 'validate', join(folder, 'manifest.json')]);
  const packed = await npx([MCPB], ['mcpb', 'pack', folder, file]);
  const kB = packed.code === 0 ? Math.round((await stat(file)).size / 1000) : 0;
  return [finding('validate', validated), { ...finding('pack', packed), note: `${kB} kB` }];
}

/** server.json, for registries. */
export async function judgeServerJson(): Promise<Finding[]> {
  const problems = await serverJsonProblems();
  const note = problems.join('; ') || 'kept copy of the schema of 2025-12-11';
  return [{ what: 'server.json by its schema', passed: problems.length === 0 ? 1 : 0, failed: problems.length, note }];
}

export async function serverJsonProblems(): Promise<string[]> {
  const [schema, document] = await Promise.all([SERVER_SCHEMA, 'server.json'].map(jsonOf));
  const ajv = new Ajv({ strict: false, allErrors: true });
  formats.default(ajv);
  const isValid = ajv.validate(schema as object, document); // a file of ours
  return isValid
    ? []
    : (ajv.errors ?? []).map(({ instancePath, message }) => `${instancePath || '/'} ${message ?? ''}`);
}

async function jsonOf(path: string): Promise<unknown> {
  return JSON.parse(await readFile(path, 'utf8'));
}

function finding(what: string, { code, stderr, stdout }: Ran): Finding {
  if (code === 0) return { what, passed: 1, failed: 0 };
  return { what, passed: 0, failed: 1, note: (stderr || stdout).trim().slice(-200) };
}
