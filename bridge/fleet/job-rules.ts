import { performance } from 'node:perf_hooks';
import type { AppError } from '../../shared/errors.ts';
import type { BatchBook } from './batch-book.ts';
import type { PlanRules } from './batch-plan.ts';
import { keyOf, whyNeverFits } from './hopeless.ts';
import { capableHost, sizeOf } from './host-forecast.ts';
import type { JobRecord } from './job-record.ts';
import { openAttempts } from './job-record.ts';
import { hostsToAvoid } from './retry-policy.ts';

/** What a host says must hold for so long before a job fails for it: the status of a GPU may jump. */
const SURE_MS = 2_000;

/** Where the jobs of a batch may go by the present state of the hosts. Jobs of one size share their rules. */
export function jobRules(book: BatchBook): (job: JobRecord) => PlanRules {
  const bySize = new Map<string, PlanRules>();
  const hosts = book.side.hosts();
  const rulesFor = ({ request }: JobRecord): PlanRules => {
    const want = { model: request.model, kind: request.kind, class: book.header.class, size: sizeOf(request) };
    const never = hosts.flatMap((host) => {
      const found = capableHost(host, want);
      return 'reason' in found && found.isForever ? [host.name] : [];
    });
    return never.length === 0 ? book.rules : { ...book.rules, avoid: never };
  };
  return (job) => {
    const key = keyOf(job.request);
    const rules = bySize.get(key) ?? rulesFor(job);
    bySize.set(key, rules);
    if (job.attempts.length === 0) return rules;
    const avoid = hostsToAvoid(job.attempts, book.capableHosts(job));
    return avoid.length === 0 ? rules : { ...rules, avoid: [...rules.avoid, ...avoid] };
  };
}

/** Finds the waiting jobs of a batch that fit on no host, so that none waits for ever. */
export class HopelessJobs {
  readonly #book: BatchBook;
  readonly #sinceMs = new Map<string, number>();

  constructor(book: BatchBook) {
    this.#book = book;
  }

  /** Those that have been hopeless for a while. Called about once a second. */
  find(nowMs = performance.now()): { job: JobRecord; error: AppError }[] {
    const { side, rules, header, jobs } = this.#book;
    const hosts = side.hosts();
    const errors = new Map<string, AppError | undefined>();
    const found: { job: JobRecord; error: AppError }[] = [];
    for (const job of jobs) {
      if (job.state.kind !== 'waiting' || openAttempts(job).length > 0) continue;
      const key = keyOf(job.request);
      if (!errors.has(key)) {
        errors.set(key, whyNeverFits(job.request, { hosts, only: rules.only, class: header.class }));
      }
      const error = errors.get(key);
      if (error === undefined) continue;
      const sinceMs = this.#sinceMs.get(key) ?? nowMs;
      this.#sinceMs.set(key, sinceMs);
      if (nowMs - sinceMs >= SURE_MS) found.push({ job, error });
    }
    for (const key of [...this.#sinceMs.keys()]) if (errors.get(key) === undefined) this.#sinceMs.delete(key);
    return found;
  }
}
