import { open } from 'node:fs/promises';
import { extname } from 'node:path';
import { AppError, errorCode } from '../../shared/errors.ts';

const MAX_BYTES = 10 * 1024 ** 2;
const MAX_PROMPTS = 10_000;

/** One prompt with what else its line says, by column or key: unchecked, and text where the file is CSV. */
export type PromptLine = { prompt: string; values: Readonly<Record<string, unknown>> };

/**
 * The prompts of a file: .txt has one on each line, .csv a column `prompt` (or one column), .jsonl a text or an object with
 * `prompt` on each line. Empty lines do not count. `path` was already checked against the allowed roots.
 */
export async function readPromptsFile(path: string): Promise<PromptLine[]> {
  const read = READERS[extname(path).toLowerCase()];
  if (read === undefined) throw invalid(path, 'only .txt, .csv and .jsonl files are read');
  const prompts = read(path, await readText(path)).filter(({ prompt }) => prompt.trim() !== '');
  if (prompts.length === 0) throw invalid(path, 'it has no prompts');
  if (prompts.length > MAX_PROMPTS) {
    throw invalid(path, `it has ${prompts.length} prompts and ${MAX_PROMPTS} are the most. Split it`);
  }
  return prompts;
}

const READERS: Record<string, (path: string, text: string) => PromptLine[]> = {
  '.txt': (_, text) => text.split('\n').map((line) => plain(line.trim())),
  '.csv': csvPrompts,
  '.jsonl': jsonlPrompts,
};

async function readText(path: string): Promise<string> {
  let bytes: Buffer;
  try {
    const file = await open(path, 'r');
    try {
      const stat = await file.stat();
      if (!stat.isFile()) throw invalid(path, 'it is not a file');
      if (stat.size > MAX_BYTES) throw invalid(path, `it is larger than ${MAX_BYTES / 1024 ** 2} MiB`);
      bytes = await file.readFile();
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof AppError) throw error;
    const code = errorCode(error) ?? String(error);
    throw invalid(path, code === 'ENOENT' ? 'there is no such file' : `it cannot be read (${code})`);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes).replaceAll('\r\n', '\n'); // also drops a byte order mark
  } catch {
    throw invalid(path, 'it is not UTF-8 text');
  }
}

function plain(prompt: string): PromptLine {
  return { prompt, values: {} };
}

function csvPrompts(path: string, text: string): PromptLine[] {
  const [header, ...rows] = csvRows(path, text);
  if (header === undefined) return [];
  const names = header.map((name) => name.trim().toLowerCase());
  const column = names.indexOf('prompt');
  if (column >= 0) {
    return rows.map((row) => {
      const others = row.flatMap((field, index) => {
        const value = field.trim();
        return index === column || value === '' ? [] : [[names[index] ?? `column ${index + 1}`, value]];
      });
      return { prompt: row[column]?.trim() ?? '', values: Object.fromEntries(others) as Record<string, string> };
    });
  }
  if ([header, ...rows].every((row) => row.length === 1))
    return [header, ...rows].map(([prompt = '']) => plain(prompt.trim()));
  throw invalid(path, 'it has several columns and none is called prompt');
}

const ODD_QUOTE =
  'has a quote that is not closed, or one inside a field without quotes around it (double the quotes inside of quotes)';

/** Fields between commas; in quotes they may hold commas, line ends and doubled quotes. */
function csvRows(path: string, text: string): string[][] {
  const rows: string[][] = [[]];
  const field = /(?:"((?:[^"]|"")*)"|([^",\n]*))(,|\n|$)/gy;
  for (let from = 0; ; from = field.lastIndex) {
    const match = field.exec(text);
    if (match === null) throw invalid(path, `line ${text.slice(0, from).split('\n').length} ${ODD_QUOTE}`);
    const [, quoted, plain = '', end] = match;
    rows.at(-1)?.push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (field.lastIndex >= text.length) break;
    if (end === '\n') rows.push([]);
  }
  return rows;
}

function jsonlPrompts(path: string, text: string): PromptLine[] {
  return text.split('\n').flatMap((line, index) => {
    if (line.trim() === '') return [];
    const found = jsonLine(line);
    if (found === undefined)
      throw invalid(path, `line ${index + 1} is neither a text nor an object with a text \`prompt\``);
    return [found];
  });
}

function jsonLine(line: string): PromptLine | undefined {
  try {
    const value: unknown = JSON.parse(line);
    if (typeof value === 'string') return plain(value);
    if (typeof value !== 'object' || value === null || !('prompt' in value)) return undefined;
    const { prompt, ...values } = value;
    return typeof prompt === 'string' ? { prompt, values } : undefined;
  } catch {
    return undefined; // the caller names the line
  }
}

function invalid(path: string, why: string): AppError {
  return new AppError('INVALID_ARGUMENT', `prompts_file ${path} cannot be used: ${why}.`);
}
