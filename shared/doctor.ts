/** `problem`: something does not work. `warning`: it works, and will bite. `skipped`: it could not be looked at, and why. */
export type FindingStatus = 'ok' | 'warning' | 'problem' | 'skipped';

/** What one check of a doctor found. */
export type Finding = {
  id: string;
  status: FindingStatus;
  detail: string;
  /** A command to type, where there is something to do. */
  hint?: string;
  /** A command that is safe to run unasked, for `--fix`. */
  fix?: readonly string[];
};

const WIDTH = Math.max(
  ...(['ok', 'warning', 'problem', 'skipped'] satisfies FindingStatus[]).map((word) => word.length),
);

/** One line for each finding, and below it the command that mends it. PURE */
export function findingLines(findings: readonly Finding[]): string[] {
  return findings.flatMap(({ id, status, detail, hint }) => [
    `${status.padEnd(WIDTH)}  ${id}: ${harmless(detail)}`,
    ...(hint === undefined ? [] : [`${' '.repeat(WIDTH)}  -> ${harmless(hint)}`]),
  ]);
}

/** Warnings do not make a host or a laptop unfit. */
export function isFit(findings: readonly Finding[]): boolean {
  return findings.every(({ status }) => status !== 'problem');
}

export function findingsJson(findings: readonly Finding[], version: string): string {
  const checks = findings.map(({ id, status, detail, hint }) => ({ id, status, detail, ...(hint && { hint }) }));
  return `${JSON.stringify({ schema: 1, ok: isFit(findings), checks, meta: { version } }, undefined, 2)}\n`;
}

/** -1, 0, 1 as a comes before, with, or after b: `0.9.2` before `0.14.0`. What follows the numbers is left out. PURE */
export function compareVersions(a: string, b: string): number {
  const [left, right] = [a, b].map((text) => (/\d+(\.\d+)*/.exec(text)?.[0] ?? '0').split('.').map(Number));
  for (let at = 0; at < Math.max(left?.length ?? 0, right?.length ?? 0); at += 1) {
    const difference = (left?.[at] ?? 0) - (right?.[at] ?? 0);
    if (difference !== 0) return Math.sign(difference);
  }
  return 0;
}

/** Major versions of Node with the last day on which they get security updates. */
const NODE_ENDS: Readonly<Record<number, string>> = { 20: '2026-04-30', 22: '2027-04-30', 24: '2028-04-30' };

/** The same on both sides. PURE */
export function nodeFinding({ version, today }: { version: string; today: string }): Finding {
  const major = Number(version.split('.')[0]);
  const end = NODE_ENDS[major] ?? (major % 2 === 1 || major < 20 ? '2026-01-01' : '9999-12-31');
  const install = 'https://nodejs.org/en/download has Node 24';
  if (compareVersions(version, '20.19') < 0) {
    return { id: 'node', status: 'problem', detail: `${version} is too old; 20.19 is needed`, hint: install };
  }
  if (today > end) {
    const detail = `${version} has had no security updates since ${end}`;
    return { id: 'node', status: 'warning', detail, hint: install };
  }
  return { id: 'node', status: 'ok', detail: version };
}

/** Text of other programs must not move the cursor of a terminal. */
function harmless(text: string): string {
  return text.replace(/\p{Cc}+/gu, ' ');
}
