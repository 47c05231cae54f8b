import { Ajv2020 } from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';
import { readFileSync } from 'node:fs';

const SCHEMA = new URL('mcp-2025-11-25.schema.json', import.meta.url);

const ajv = new Ajv2020({ strict: false });
addFormats.default(ajv);
ajv.addSchema(JSON.parse(readFileSync(SCHEMA, 'utf8')) as object, 'mcp'); // a file of ours

/** What is wrong with a value by a definition of the official schema of MCP 2025-11-25; empty where nothing is. */
export function problemsBy(definition: string, value: unknown): string[] {
  const validate = ajv.getSchema(`mcp#/$defs/${definition}`);
  if (validate === undefined) throw new Error(`the schema has no ${definition}`);
  if (validate(value) === true) return [];
  return (validate.errors ?? []).map(({ instancePath, message }) => `${definition}${instancePath} ${message ?? ''}`);
}
