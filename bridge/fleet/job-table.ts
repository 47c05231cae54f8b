import { megapixelsOf } from '../../shared/job.ts';
import type { JobRequest } from '../../shared/job.ts';
import { workUnits } from '../../shared/service-time.ts';
import type { BatchSequence } from './batch-order.ts';
import { keyOf } from './hopeless.ts';
import type { JobRecord } from './job-record.ts';
import { isInFlight } from './job-state.ts';
import type { JobStateKind } from './job-state.ts';

/** What hosts can tell of a job: those of one shape fit on the same hosts (as all with this `key`) and take equally long. */
export type JobShape = { key: string; request: JobRequest; units: number; megapixels: number };

/**
 * The jobs of one batch, found by what they do at the moment. With 10,000 of them nothing that happens to one job may look
 * at all, so these lists are kept up to date by `moved`, which is told of every change of a state.
 */
export class JobTable {
  readonly jobs: readonly JobRecord[];
  /** The same in the order of the plan. */
  readonly inOrder: readonly JobRecord[];
  readonly #byId: ReadonlyMap<string, JobRecord>;
  readonly #places = new Map<JobRecord, { rank: number; shape: JobShape }>();
  readonly #waiting = new Map<string, JobRecord[]>();
  readonly #inFlight = new Set<JobRecord>();
  readonly #counts = new Map<JobStateKind, number>();
  /** How many wait that were never sent, by shape, and those that were. */
  readonly #fresh = new Map<JobShape, number>();
  readonly #retried = new Set<JobRecord>();

  constructor(jobs: readonly JobRecord[], order: BatchSequence) {
    const shapes = new Map<string, JobShape>();
    const shapeOf = new Map(jobs.map((job) => [job, intern(shapes, job.request)]));
    const unitsOf = (job: JobRecord): number => shapeOf.get(job)?.units ?? 0;
    this.jobs = jobs;
    this.inOrder = order === 'fifo' ? jobs : [...jobs].sort((a, b) => unitsOf(b) - unitsOf(a) || a.index - b.index);
    this.#byId = new Map(jobs.map((job) => [job.jobId, job]));
    for (const [rank, job] of this.inOrder.entries()) {
      const shape = shapeOf.get(job);
      if (shape === undefined) throw new Error(`job ${job.jobId} has no shape`);
      this.#places.set(job, { rank, shape });
      this.#add(job);
    }
  }

  job(jobId: string): JobRecord | undefined {
    return this.#byId.get(jobId);
  }

  get inFlight(): ReadonlySet<JobRecord> {
    return this.#inFlight;
  }

  count(kind: JobStateKind): number {
    return this.#counts.get(kind) ?? 0;
  }

  get models(): string[] {
    return [...this.#waiting.keys()];
  }

  /** In the order of the plan. */
  waitingFor(model: string): readonly JobRecord[] {
    return this.#waiting.get(model) ?? [];
  }

  /** Of all models, in the order of the plan. */
  waiting(): readonly JobRecord[] {
    const lists = [...this.#waiting.values()].filter(({ length }) => length > 0);
    if (lists.length <= 1) return lists[0] ?? [];
    return lists.flat().sort((a, b) => this.#rank(a) - this.#rank(b));
  }

  /** What waits, as far as it is alike: jobs that were never sent, added up by shape, and the others one by one. */
  waitingShapes(): { shape: JobShape; count: number; retried: JobRecord | undefined }[] {
    return [
      ...[...this.#fresh].map(([shape, count]) => ({ shape, count, retried: undefined })),
      ...[...this.#retried].map((job) => ({ shape: this.shapeOf(job), count: 1, retried: job })),
    ];
  }

  shapeOf(job: JobRecord): JobShape {
    return this.#place(job).shape;
  }

  /** Changes a job's state by `change`, and follows it. */
  move(job: JobRecord, change: () => void): void {
    this.#remove(job);
    try {
      change();
    } finally {
      this.#add(job); // also when the change is refused: then it is where it was
    }
  }

  #add(job: JobRecord): void {
    const { kind } = job.state;
    this.#counts.set(kind, this.count(kind) + 1);
    if (isInFlight(job.state)) this.#inFlight.add(job);
    if (kind !== 'waiting') return;
    const { model } = job.request;
    const list = this.#waiting.get(model) ?? [];
    this.#waiting.set(model, list);
    list.splice(this.#indexIn(list, job), 0, job);
    const { shape } = this.#place(job);
    if (job.attempts.length > 0) this.#retried.add(job);
    else this.#fresh.set(shape, (this.#fresh.get(shape) ?? 0) + 1);
  }

  #remove(job: JobRecord): void {
    const { kind } = job.state;
    this.#counts.set(kind, this.count(kind) - 1);
    this.#inFlight.delete(job);
    if (kind !== 'waiting') return;
    const list = this.#waiting.get(job.request.model) ?? [];
    const index = this.#indexIn(list, job);
    if (list[index] === job) list.splice(index, 1);
    if (this.#retried.delete(job)) return;
    const { shape } = this.#place(job);
    const left = (this.#fresh.get(shape) ?? 0) - 1;
    if (left > 0) this.#fresh.set(shape, left);
    else this.#fresh.delete(shape);
  }

  /** Where it stands in a list in the order of the plan, or would. */
  #indexIn(list: readonly JobRecord[], job: JobRecord): number {
    const rank = this.#rank(job);
    let [low, high] = [0, list.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      const other = list[middle];
      if (other !== undefined && this.#rank(other) < rank) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #rank(job: JobRecord): number {
    return this.#place(job).rank;
  }

  #place(job: JobRecord): { rank: number; shape: JobShape } {
    const place = this.#places.get(job);
    if (place === undefined) throw new Error(`job ${job.jobId} is not of this batch`);
    return place;
  }
}

function intern(shapes: Map<string, JobShape>, request: JobRequest): JobShape {
  const units = workUnits(request);
  const key = keyOf(request);
  const shape = shapes.get(`${key} ${units}`) ?? { key, request, units, megapixels: megapixelsOf(request) };
  shapes.set(`${key} ${units}`, shape);
  return shape;
}
