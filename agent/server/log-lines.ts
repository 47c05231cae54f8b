import { stripVTControlCharacters } from 'node:util';

/** Longer lines are cut: nothing that a person can read is as long. */
const LINE_CHARS = 16 * 1024;

/** What looks like a secret, whoever's it is. The server may print its whole command line. */
const SECRETS: readonly [pattern: RegExp, shown: string][] = [
  [/hf_[A-Za-z0-9]{8,}/g, 'hf_[redacted]'],
  [/(bearer\s+)[^\s'",]+/gi, '$1[redacted]'],
  [/(api[_-]?key['"]?\s*[:=\s]\s*\[?['"]?)[^\s'",\]]+/gi, '$1[redacted]'],
];

export type CleanOptions = { maxChars?: number; secrets?: readonly string[] };

/** Lines without colours, without the overwritten states of a progress bar, without secrets; empty ones are left out. */
export function cleanLines(text: string, options: CleanOptions = {}): string[] {
  return text
    .split('\n')
    .map((line) => cleanLine(line, options))
    .filter((line) => line !== '');
}

export function cleanLine(line: string, { maxChars = LINE_CHARS, secrets = [] }: CleanOptions = {}): string {
  const shown = stripVTControlCharacters(line).trimEnd().split('\r').at(-1)?.trimEnd() ?? '';
  const known = secrets.reduce((rest, secret) => rest.replaceAll(secret, '[redacted]'), shown);
  const safe = SECRETS.reduce((rest, [pattern, instead]) => rest.replace(pattern, instead), known);
  return safe.length > maxChars ? `${safe.slice(0, maxChars)}…` : safe;
}

/** The values in an environment that are secret by the name of their variable. */
export function secretsIn(env: Readonly<Record<string, string>>): string[] {
  return Object.entries(env).flatMap(([name, value]) =>
    /KEY|TOKEN|SECRET|PASSWORD/i.test(name) && value.length >= 4 ? value : [],
  );
}
