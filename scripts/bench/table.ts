import { styleText } from 'node:util';
import { tableLines } from '../../shared/screen-text.ts';
import type { BenchRow } from './row.ts';
import { figure } from './row.ts';

const HEAD = ['id', 'what', 'figure', 'ratio', 'against', 'gate', ''] as const;

/** The rows as a table for a person. PURE but for colours, which `styleText` leaves out where there is no terminal. */
export function tableOf(rows: readonly BenchRow[]): string {
  const lines = tableLines([HEAD, ...rows.map(cellsOf)]);
  const notes = rows.flatMap(({ id, note }) => (note === undefined ? [] : [`${id}: ${note}`]));
  return [...lines, ...(notes.length > 0 ? ['', ...notes] : [])].map((line) => colour(line)).join('\n');
}

function cellsOf({ id, name, value, unit, ratio, reference, gate, pass }: BenchRow): string[] {
  const verdict = value === null ? 'not run' : pass === null ? '' : pass ? 'pass' : 'FAIL';
  return [
    id,
    name,
    value === null ? '-' : `${figure(value)} ${unit}`,
    ratio === null ? '-' : ratio.toFixed(3),
    reference,
    gate,
    verdict,
  ];
}

function colour(line: string): string {
  return line.endsWith('FAIL') ? styleText('red', line) : line;
}
