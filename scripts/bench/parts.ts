import { IMAGES } from './images.ts';
import type { BenchPart } from './row.ts';

/** In the order in which they run: one after another, because they share two cores. */
export const PARTS: readonly BenchPart[] = [...IMAGES];
