import type { ErrorCode } from '../../shared/errors.ts';
import type { ModelId } from '../../shared/job.ts';

export type JobCounts = { done: number; cancelled: number; runMs: number; failed: ReadonlyMap<ErrorCode, number> };

type Counts = { done: number; cancelled: number; runMs: number; failed: Map<ErrorCode, number> };

/** How the jobs of each model ended since the agent started; counts alone, and no word of what was asked. */
export class JobTally {
  readonly #models = new Map<ModelId, Counts>();

  done(model: ModelId, runMs: number): void {
    const counts = this.#of(model);
    counts.done += 1;
    counts.runMs += runMs;
  }

  failed(model: ModelId, code: ErrorCode): void {
    const { failed } = this.#of(model);
    failed.set(code, (failed.get(code) ?? 0) + 1);
  }

  cancelled(model: ModelId): void {
    this.#of(model).cancelled += 1;
  }

  get models(): ReadonlyMap<ModelId, JobCounts> {
    return this.#models;
  }

  #of(model: ModelId): Counts {
    const known = this.#models.get(model);
    if (known !== undefined) return known;
    const made: Counts = { done: 0, cancelled: 0, runMs: 0, failed: new Map() };
    this.#models.set(model, made);
    return made;
  }
}
