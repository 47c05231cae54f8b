import { ZodArray, ZodOptional, ZodString } from 'zod';
import type { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import { nearest } from '../../shared/nearest.ts';
import type { Batch } from '../fleet/batch.ts';
import type { Fleet } from '../fleet/fleet.ts';
import type { Images } from '../images/images.ts';
import type { Roots } from '../output/roots.ts';
import type { StyleBook } from '../styles/style-book.ts';
import type { Doing } from './progress.ts';
import type { ImageAnswer } from './results.ts';
import { imageResult, jsonResult } from './results.ts';
import type { CallToolResult } from './sdk.ts';

/** What the tools were configured with. */
export type ToolSettings = {
  outputDir: string | undefined;
  defaultModel: string | undefined;
  defaultEditModel: string | undefined;
  preview: 'inline' | 'none';
  /** Images of one batch at a time, over all hosts; undefined: every free slot. */
  maxConcurrent?: number | undefined;
  /** Whether answers end with links to the files. */
  resultLinks?: boolean;
};

/** What one call may use. Tools never see the SDK. */
export type ToolContext = {
  /** Aborts when the client takes the call back or goes away. */
  signal: AbortSignal;
  /** `asked`: somebody wants the work to end. `left`: the client gave up waiting or is gone; the work goes on. */
  cancelReason: () => 'asked' | 'left' | undefined;
  /** From now on the client, where it wants to know, is told what this returns; it is asked at most twice a second. */
  progress: (look: () => Doing) => void;
  /** For a caller that shows more of the work than the answer does. */
  onBatch?: (batch: Pick<Batch, 'id' | 'view'>) => void;
  client: { name: string; version: string };
  /** How long this client is known to wait; Infinity where it waits without limit. */
  syncWaitMs: number;
  settings: ToolSettings;
  roots: () => Promise<Roots>;
  /** The fleet, once each link is up or has failed. */
  fleet: () => Promise<Fleet>;
  /** The images that were made here, by id, whatever became of their batches. */
  images: () => Promise<Images>;
  /** The style briefs that the user saved. */
  styles: () => Promise<StyleBook>;
};

export type Annotations = {
  readOnlyHint: boolean;
  destructiveHint: boolean;
  idempotentHint: boolean;
  openWorldHint: boolean;
};

/** How a tool is shown, and its call: arguments as they came in, the answer as it goes out. Rejects with what went wrong. */
export type Tool = {
  name: string;
  title: string;
  description: string;
  annotations: Annotations;
  input: z.ZodObject;
  output: z.ZodObject | undefined;
  call: (args: unknown, context: ToolContext) => Promise<CallToolResult>;
};

type Head = Pick<Tool, 'name' | 'title' | 'description' | 'annotations'>;

/** Nothing changes. */
export const READS: Annotations = {
  readOnlyHint: true,
  destructiveHint: false,
  idempotentHint: true,
  openWorldHint: false,
};

/** New files only, never overwritten; asking twice makes two. */
export const MAKES: Annotations = { ...READS, readOnlyHint: false, idempotentHint: false };

/** Changes the state of a host, towards the same end however often it is asked. */
export const MOVES: Annotations = { ...READS, readOnlyHint: false };

/** Ends work or gives up memory. */
export const ENDS: Annotations = { ...MOVES, destructiveHint: true };

/** A tool that answers data: JSON whose shape is declared. */
export function defineTool<I extends z.ZodObject, O extends z.ZodObject>(
  tool: Head & { input: I; output: O; run: (args: z.output<I>, context: ToolContext) => Promise<z.input<O>> },
): Tool {
  const { run, ...shown } = tool;
  return { ...shown, call: async (args, context) => jsonResult(await run(parseArguments(tool.input, args), context)) };
}

/** A tool that answers with a sentence, JSON and previews of images. */
export function defineImageTool<I extends z.ZodObject>(
  tool: Head & { input: I; run: (args: z.output<I>, context: ToolContext) => Promise<ImageAnswer> },
): Tool {
  const { run, ...shown } = tool;
  return {
    ...shown,
    output: undefined,
    call: async (args, context) => {
      const answer = await run(parseArguments(tool.input, args), context);
      return imageResult(context.settings.resultLinks === true ? answer : { ...answer, links: [] });
    },
  };
}

/**
 * Checks arguments against a schema; every problem becomes one sentence. Models write `null` for what they leave out, and one
 * text where a list of texts is asked for: both are taken as meant.
 */
export function parseArguments<I extends z.ZodObject>(input: I, args: unknown): z.output<I> {
  const given = typeof args === 'object' && args !== null ? Object.entries(args) : [];
  const meant = given
    .filter(([, value]) => value !== null)
    .map(([name, value]): [string, unknown] => [
      name,
      typeof value === 'string' && isTextList(input, name) ? [value] : value,
    ]);
  const parsed = input.safeParse(Object.fromEntries(meant));
  if (parsed.success) return parsed.data;
  const sentences = parsed.error.issues.flatMap((issue) => sentencesOf(issue, Object.keys(input.shape)));
  throw new AppError('INVALID_ARGUMENT', sentences.join(' '));
}

function isTextList(input: z.ZodObject, name: string): boolean {
  const schema: unknown = Object.hasOwn(input.shape, name) ? input.shape[name] : undefined;
  const inner = schema instanceof ZodOptional ? schema.unwrap() : schema;
  return inner instanceof ZodArray && inner.element instanceof ZodString;
}

function sentencesOf(issue: z.core.$ZodIssue, valid: readonly string[]): string[] {
  if (issue.code === 'unrecognized_keys') return issue.keys.map((key) => unknownArgument(key, valid));
  const name = issue.path
    .map((step, index) => (typeof step === 'number' ? `[${step}]` : `${index > 0 ? '.' : ''}${String(step)}`))
    .join('');
  return [`${name || 'arguments'} ${problemOf(issue)}.${nextStep(issue)}`];
}

/** What a schema itself says to do instead of more; zod's own words for it are not a next step. */
function nextStep({ code, message }: z.core.$ZodIssue): string {
  return code === 'too_big' && !message.startsWith('Too big') ? ` ${message}` : '';
}

function unknownArgument(key: string, valid: readonly string[]): string {
  const near = nearest(key, valid);
  const hint = near === undefined ? '' : ` Did you mean ${near}?`;
  const list = valid.length === 0 ? 'This tool takes none.' : `Valid arguments: ${valid.join(', ')}.`;
  return `Unknown argument ${JSON.stringify(key.slice(0, 80))}.${hint} ${list}`;
}

function problemOf(issue: z.core.$ZodIssue): string {
  if (issue.code === 'invalid_type') {
    // zod keeps the input out of its issues, so that only its own sentence tells a missing value from a wrong one.
    return issue.message.endsWith('received undefined') ? 'is missing' : `must be ${article(issue.expected)}`;
  }
  if (issue.code === 'too_small') return boundOf(issue.origin, `at least ${String(issue.minimum)}`);
  if (issue.code === 'too_big') return boundOf(issue.origin, `at most ${String(issue.maximum)}`);
  if (issue.code === 'invalid_value') return `must be one of ${issue.values.map(String).join(', ')}`;
  return `is not valid: ${issue.message}`;
}

function article(type: string): string {
  if (type === 'int') return 'a whole number';
  return /^[aeiou]/.test(type) ? `an ${type}` : `a ${type}`;
}

function boundOf(origin: string, bound: string): string {
  if (origin === 'string') return `must have ${bound} characters`;
  const entries = bound.endsWith(' 1') ? 'entry' : 'entries';
  return origin === 'array' ? `must have ${bound} ${entries}` : `must be ${bound}`;
}
