/** What one judge said. `note` says why it was not run, or what a reader should know. */
export type Verdict = { judge: string; what: string; passed: number; failed: number; isRun: boolean; note: string };

/** One thing that a judge looked at. */
export type Finding = { what: string; passed: number; failed: number; note?: string };

export function isGreen({ isRun, passed, failed }: Verdict): boolean {
  return isRun && failed === 0 && passed > 0;
}

const HEAD = ['judge', 'what', 'passed', 'failed', '', 'note'];

/** PURE. The verdicts as a table for a person. */
export function tableOf(verdicts: readonly Verdict[]): string {
  const rows = [HEAD, ...verdicts.map(cellsOf)];
  const widths = HEAD.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  const line = (row: readonly string[]): string =>
    row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join('  ');
  return rows.map((row) => line(row).trimEnd()).join('\n');
}

function cellsOf(verdict: Verdict): string[] {
  const { judge, what, passed, failed, isRun, note } = verdict;
  const figures = isRun ? [String(passed), String(failed)] : ['-', '-'];
  return [judge, what, ...figures, isRun ? (isGreen(verdict) ? 'pass' : 'FAIL') : 'not run', note];
}
