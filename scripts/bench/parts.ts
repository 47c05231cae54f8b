import { batches } from './batches.ts';
import { decisions } from './decisions.ts';
import { FAN_OUT } from './fan-out.ts';
import { FOOTPRINT } from './footprint.ts';
import { IMAGES } from './images.ts';
import type { BenchPart } from './row.ts';
import { sharedHosts, twoModels } from './sharing.ts';
import { START_UP } from './start-up.ts';

/** In the order in which they run: one after another, because they share two cores. */
export const PARTS: readonly BenchPart[] = [
  batches,
  sharedHosts,
  twoModels,
  decisions,
  ...IMAGES,
  FOOTPRINT,
  FAN_OUT,
  START_UP,
];
