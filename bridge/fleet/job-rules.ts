import { performance } from 'node:perf_hooks';
import type { AppError } from '../../shared/errors.ts';
import type { BatchBook } from './batch-book.ts';
import type { PlanRules } from './batch-plan.ts';
import { rulesOnHosts } from './forecast.ts';
import { whyNeverFits } from './hopeless.ts';
import type { JobRecord } from './job-record.ts';
import { openAttempts } from './job-record.ts';
import type { JobShape } from './job-table.ts';
import { hostsToAvoid } from './retry-policy.ts';

/** What a host says must hold for so long before a job fails for it: the status of a GPU may jump. */
const SURE_MS = 2_000;

/** Where the jobs of a batch may go by the present state of the hosts. Jobs that fit on the same hosts share their rules. */
export function jobRules(book: BatchBook): {
  shape: (shape: JobShape) => PlanRules;
  job: (job: JobRecord) => PlanRules;
} {
  const known = new Map<string, PlanRules>();
  const hosts = book.side.hosts();
  const rulesFor = ({ request }: JobShape): PlanRules =>
    rulesOnHosts(request, { rules: book.rules, class: book.header.class, hosts });
  const shapeRules = (shape: JobShape): PlanRules => {
    const rules = known.get(shape.key) ?? rulesFor(shape);
    known.set(shape.key, rules);
    return rules;
  };
  const jobRules = (job: JobRecord): PlanRules => {
    const rules = shapeRules(book.table.shapeOf(job));
    if (job.attempts.length === 0) return rules;
    const avoid = hostsToAvoid(job.attempts, book.capableHosts(job));
    return avoid.length === 0 ? rules : { ...rules, avoid: [...rules.avoid, ...avoid] };
  };
  return { shape: shapeRules, job: jobRules };
}

/** Finds the waiting jobs of a batch that fit on no host, so that none waits for ever. */
export class HopelessJobs {
  readonly #book: BatchBook;
  readonly #sinceMs = new Map<JobShape, number>();

  constructor(book: BatchBook) {
    this.#book = book;
  }

  /** Those that have been hopeless for a while. Called about once a second. */
  find(nowMs = performance.now()): { job: JobRecord; error: AppError }[] {
    const { side, rules, header, table } = this.#book;
    const hosts = side.hosts();
    const errors = new Map<JobShape, AppError>();
    const shapes = new Set(table.waitingShapes().map((one) => one.shape));
    for (const shape of [...this.#sinceMs.keys()]) if (!shapes.has(shape)) this.#sinceMs.delete(shape);
    for (const shape of shapes) {
      const error = whyNeverFits(shape.request, { hosts, only: rules.only, class: header.class });
      const sinceMs = this.#sinceMs.get(shape) ?? nowMs;
      if (error === undefined) this.#sinceMs.delete(shape);
      else this.#sinceMs.set(shape, sinceMs);
      if (error !== undefined && nowMs - sinceMs >= SURE_MS) errors.set(shape, error);
    }
    if (errors.size === 0) return [];
    return table.waiting().flatMap((job) => {
      const error = errors.get(table.shapeOf(job));
      return error === undefined || openAttempts(job).length > 0 ? [] : [{ job, error }];
    });
  }
}
