import { performance } from 'node:perf_hooks';
import { AppError } from '../../shared/errors.ts';
import type { JobRequest } from '../../shared/job.ts';
import { megapixelsOf } from '../../shared/job.ts';
import { roomProblem, withMargin } from '../output/disk-room.ts';
import type { RoomProblem } from '../output/disk-room.ts';
import type { BatchBook } from './batch-book.ts';
import { isOver } from './job-state.ts';

/** What a PNG takes at most, more or less: photographs compress badly. */
const BYTES_PER_MEGAPIXEL = 2_000_000;
/** Enough for the lines of many jobs. */
const MANIFEST_BYTES = 1024 ** 2;

/** What the images of these requests may take. */
export function estimatedBytes(requests: readonly JobRequest[]): number {
  return requests.reduce((sum, request) => sum + megapixelsOf(request), 0) * BYTES_PER_MEGAPIXEL;
}

/**
 * Whether the images of a batch can still be saved. Looked at while the batch runs, so that no host works for an image
 * without a place; and what stopped a batch for want of a place lets it go on here, and only here.
 */
export class RoomWatch {
  readonly #book: BatchBook;
  #lookedAtMs: number;

  /** A new batch was just looked at; one that is resumed is looked at soon. */
  constructor(book: BatchBook, { isNew }: { isNew: boolean }) {
    this.#book = book;
    this.#lookedAtMs = isNew ? performance.now() : -Infinity;
  }

  /** Called about once a second; looks when it is time again. */
  async look(): Promise<void> {
    if (performance.now() - this.#lookedAtMs >= this.#book.side.times.diskCheckMs) await this.check();
  }

  /** Pauses the batch, or lets it go on. */
  async check(): Promise<void> {
    this.#lookedAtMs = performance.now();
    const problem = await this.#problem();
    if (problem === undefined) return this.#book.goOn();
    const next =
      'The batch is paused and goes on by itself once images can be saved; what hosts have made is kept there.';
    this.#book.pauseBy(new AppError(problem.code, `${problem.what} ${next}`, { cause: problem.cause }));
  }

  async #problem(): Promise<RoomProblem | undefined> {
    const { directory, jobs } = this.#book;
    const open = jobs.filter(({ state }) => !isOver(state));
    for (const target of new Set(open.map((job) => job.directory))) {
      const requests = open.filter((job) => job.directory === target).map(({ request }) => request);
      const problem = await roomProblem(target, withMargin(estimatedBytes(requests)));
      if (problem !== undefined) return problem;
    }
    return await roomProblem(directory, MANIFEST_BYTES);
  }
}
