import { FAN_OUT } from './fan-out.ts';
import { FOOTPRINT } from './footprint.ts';
import type { BenchPart } from './row.ts';
import { START_UP } from './start-up.ts';

/** In the order in which they run: one after another, because they share two cores. */
export const PARTS: readonly BenchPart[] = [FOOTPRINT, FAN_OUT, START_UP];
