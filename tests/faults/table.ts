import { tableLines } from '../../shared/screen-text.ts';
import { FACTOR } from './scale.ts';

/** One line of the table: an outcome of a fault, and when it was seen. */
export type FaultLine = { id: string; fault: string; outcome: string; seenMs: number | null; boundMs: number | null };

declare module 'vitest' {
  export interface TaskMeta {
    /** What the last attempt of a fault has seen. */
    faultLines?: FaultLine[];
  }
}

const HEAD = ['id', 'fault', 'outcome', 'seen after', 'bound'];

/** What was seen of each fault, one outcome a line, under the factor that all its times were scaled by. */
export function faultTable(lines: readonly FaultLine[]): string {
  // Rows that ran beside each other wrote in turns.
  const sorted = [...lines].sort((a, b) => a.id.localeCompare(b.id) || a.fault.localeCompare(b.fault));
  const rows = [
    HEAD,
    ...sorted.map(({ id, fault, outcome, seenMs, boundMs }, index) => {
      const isSame = sorted[index - 1]?.id === id && sorted[index - 1]?.fault === fault;
      return [isSame ? '' : id, isSame ? '' : fault, outcome, seconds(seenMs), seconds(boundMs)];
    }),
  ];
  return [
    `Fault tests: all times x ${FACTOR}; the bounds allow for programs to start, measured anew for each.`,
    ...tableLines(rows),
  ].join('\n');
}

function seconds(ms: number | null): string {
  return ms === null ? '-' : `${(ms / 1000).toFixed(1)} s`;
}
