import { parseDocument } from 'yaml';
import { z } from 'zod';
import { nearest } from './nearest.ts';

/** A configuration that cannot be used, with every problem found in it; programs print them and exit 78. */
export class ConfigError extends Error {
  readonly problems: readonly string[];
  /** The command that mends them, where there is one. */
  readonly mend: string | undefined;

  constructor(problems: readonly string[], { mend }: { mend?: string | undefined } = {}) {
    super(problems.join('\n'));
    this.name = 'ConfigError';
    this.problems = problems;
    this.mend = mend;
  }
}

const DURATION = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/;
const DURATION_MS: Record<string, number> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const SIZE = /^(\d+(?:\.\d+)?)(MiB|GiB|TiB)$/;
const SIZE_MIB: Record<string, number> = { MiB: 1, GiB: 1_024, TiB: 1_048_576 };

/** `250ms`, `30s`, `5m`, `1h`, `3d`, as milliseconds. */
export const Duration = z
  .string({ error: 'expected a duration like 30s, 5m or 1h' })
  .regex(DURATION, { error: 'expected a duration like 30s, 5m or 1h' })
  .transform((text) => scaled(DURATION, DURATION_MS, text));

/** `512MiB`, `8GiB`, as MiB. */
export const Size = z
  .string({ error: 'expected a size like 512MiB or 8GiB' })
  .regex(SIZE, { error: 'expected a size like 512MiB or 8GiB' })
  .transform((text) => Math.round(scaled(SIZE, SIZE_MIB, text)));

function scaled(pattern: RegExp, units: Record<string, number>, text: string): number {
  const [, amount = '', unit = ''] = pattern.exec(text) ?? [];
  return Number(amount) * (units[unit] ?? Number.NaN);
}

/** A YAML text as plain values; an empty file is an empty mapping. Throws ConfigError with the lines of every mistake. */
export function parseYaml(text: string): Record<string, unknown> {
  const document = parseDocument(text, { prettyErrors: true });
  if (document.errors.length > 0) throw new ConfigError(document.errors.map(({ message }) => firstLine(message)));
  const value: unknown = document.toJS() ?? {};
  if (isRecord(value)) return value;
  throw new ConfigError(['expected a mapping of keys to values at the top of the file']);
}

/** Checks values against a schema; throws ConfigError with every problem, its path, and the nearest valid key. */
export function checkConfig<S extends z.ZodType>(schema: S, values: unknown): z.output<S> {
  const parsed = schema.safeParse(values);
  if (parsed.success) return parsed.data;
  const shape: unknown = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' });
  throw new ConfigError(parsed.error.issues.flatMap((issue) => describe(issue, shape)));
}

function describe(issue: z.core.$ZodIssue, shape: unknown): string[] {
  if (issue.code !== 'unrecognized_keys') return [`${pathText(issue.path) || 'file'}: ${issue.message}`];
  const valid = keysAt(shape, issue.path);
  return issue.keys.map((key) => {
    const near = nearest(key, valid);
    const hint = near === undefined ? `Valid keys: ${valid.join(', ')}.` : `Did you mean ${near}?`;
    return `${pathText([...issue.path, key])}: unknown key. ${hint}`;
  });
}

/** Keys the JSON Schema allows below a path. */
function keysAt(shape: unknown, path: readonly PropertyKey[]): string[] {
  let here = shape;
  for (const step of path) {
    const properties = field(here, 'properties');
    here = field(properties, String(step)) ?? field(here, 'additionalProperties') ?? field(here, 'items');
  }
  const properties = field(here, 'properties');
  return isRecord(properties) ? Object.keys(properties) : [];
}

function field(value: unknown, key: string): unknown {
  return isRecord(value) ? value[key] : undefined;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function pathText(path: readonly PropertyKey[]): string {
  return path
    .map((step, index) => (typeof step === 'number' ? `[${step}]` : `${index > 0 ? '.' : ''}${String(step)}`))
    .join('');
}

function firstLine(text: string): string {
  return text.split('\n', 1)[0]?.replace(/:$/, '') ?? text;
}
