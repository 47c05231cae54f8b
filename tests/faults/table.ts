import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestProject } from 'vitest/node';
import type { FaultLine } from './fault.ts';
import { measureProcessMs } from './machine-speed.ts';
import { FACTOR } from './scale.ts';

declare module 'vitest' {
  export interface ProvidedContext {
    /** A file that every fault adds its outcomes to. */
    faultTable: string;
  }
}

let directory: string;

/** Says at the start by which factor times are scaled, and at the end what was seen. */
export async function setup(project: TestProject): Promise<void> {
  directory = await mkdtemp(join(tmpdir(), 'gantry-faults-'));
  project.provide('faultTable', join(directory, 'table.jsonl'));
  const allowance = `${((await measureProcessMs()) / 1000).toFixed(1)} s more in every bound for programs to start, measured anew for each`;
  process.stdout.write(`Fault tests: all times x ${FACTOR}; ${allowance}.\n`);
}

export async function teardown(): Promise<void> {
  const text = await readFile(join(directory, 'table.jsonl'), 'utf8').catch(() => ''); // none: no fault was run
  await rm(directory, { recursive: true, force: true });
  const lines = text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as FaultLine); // written by fault.ts alone
  if (lines.length > 0) process.stdout.write(`\n${table(lines)}\n`);
}

function table(lines: readonly FaultLine[]): string {
  // Rows that ran beside each other wrote in turns.
  const sorted = [...lines].sort((a, b) => a.id.localeCompare(b.id) || a.fault.localeCompare(b.fault));
  const rows = [
    ['id', 'fault', 'outcome', 'seen after', 'bound'],
    ...sorted.map(({ id, fault, outcome, seenMs, boundMs }, index) => {
      const isSame = sorted[index - 1]?.id === id && sorted[index - 1]?.fault === fault;
      return [isSame ? '' : id, isSame ? '' : fault, outcome, seconds(seenMs), seconds(boundMs)];
    }),
  ];
  const widths = [0, 1, 2, 3, 4].map((column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

function seconds(ms: number | null): string {
  return ms === null ? '-' : `${(ms / 1000).toFixed(1)} s`;
}
