import { readFileSync } from 'node:fs';
import type { GpuRow } from '../../../agent/gpu/smi-rows.ts';
import { FIELD_LADDER, parseGpuLine, wholeLines } from '../../../agent/gpu/smi-rows.ts';

/** See tests/golden/nvidia-smi/README.md for what these are. */
export function golden(name: string): string {
  return readFileSync(`tests/golden/nvidia-smi/${name}`, 'utf8');
}

export function rowsOf(text: string, rung: 0 | 1 | 2 = 0): GpuRow[] {
  return wholeLines(text).flatMap((line) => parseGpuLine(line, FIELD_LADDER[rung]) ?? []);
}
