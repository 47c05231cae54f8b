import { performance } from 'node:perf_hooks';
import { answerGrant, planOrder } from '../../bridge/fleet/batch-plan.ts';
import type { HostView } from '../../bridge/fleet/host-view.ts';
import { planSlots } from '../../bridge/fleet/plan-slots.ts';
import { hostView, MODEL } from './decisions/virtual-host-view.ts';
import { optimumMs, planJob, planMakespanMs, planSlot } from './decisions/plan-in-virtual-time.ts';
import type { BenchPart, BenchRow } from './row.ts';
import { absoluteRow, figure, ratioRow } from './row.ts';

const SPEEDS = [1, 1, 2, 4];
const MOST_JOBS = 40;
const UNITS = 800;
/** Microseconds. */
const B7_GATE = 50;
const ROUNDS = 50;
const REPEATS = 200;

/** The product's own decisions, without processes: how good the plan is, and what one answer costs. */
export const decisions: BenchPart = {
  ids: ['B6', 'B7'],
  title: 'Decisions of the plan alone',
  run: () => Promise.resolve([identicalJobs(), ...decisionCosts()]),
};

/** The worst of n = 1 to 40: with identical jobs the plan must be the optimum exactly. */
function identicalJobs(): BenchRow {
  const cases = Array.from({ length: MOST_JOBS }, (_, index) => {
    const value = planMakespanMs(Array<number>(index + 1).fill(UNITS), SPEEDS, [3, 1, 0, 2]);
    const best = optimumMs(index + 1, { units: UNITS, speeds: SPEEDS });
    return { count: index + 1, value: rounded(value), best: rounded(best) };
  });
  const worst = cases.reduce((a, b) => (b.value / b.best > a.value / a.best ? b : a));
  return ratioRow({
    id: 'B6',
    name: `identical jobs, n = 1 to ${MOST_JOBS} on speeds ${SPEEDS.join(', ')}, the worst n`,
    value: worst.value,
    unit: 'ms',
    reference: { name: `optimum for n = ${worst.count}`, value: worst.best },
    most: 1,
  });
}

function decisionCosts(): BenchRow[] {
  const [large, small] = [costs({ jobs: 200, hosts: 50 }), costs({ jobs: 20, hosts: 4 })];
  const name = 'one decision, 200 jobs x 50 hosts';
  const against = (us: number): string => `20 jobs x 4 hosts: ${figure(us)} µs`;
  return [
    absoluteRow({ id: 'B7', name, value: large.planUs, unit: 'µs', reference: against(small.planUs), most: B7_GATE }),
    absoluteRow({
      id: 'B7 whole',
      name: `${name}, from the hosts' status to the answer`,
      value: large.wholeUs,
      unit: 'µs',
      reference: against(small.wholeUs),
      most: null,
    }),
  ];
}

/** Of several repeats the fastest: whatever else runs on the machine only adds to the others. */
function costs({ jobs: count, hosts: hostCount }: { jobs: number; hosts: number }): {
  planUs: number;
  wholeUs: number;
} {
  const jobs = Array.from({ length: count }, (_, n) => ({ ...planJob(`j${n}`, 600 - 2 * n), index: n }));
  const speedOf = (n: number): number => [1, 1, 1.5, 2, 4][n % 5] ?? 1;
  const slots = Array.from({ length: hostCount }, (_, n) => planSlot(`h${n}`, speedOf(n), { startsInMs: n * 10 }));
  const hosts = Array.from({ length: hostCount }, (_, n): HostView => {
    const service = { fixedMs: 200, unitMs: 100 / speedOf(n), samples: 9 };
    return hostView(n, { service, phase: 'running', freeInMs: n * 10 });
  });
  const holdings = hosts.map(({ name }, n) => ({ host: name, slotId: 's', endsAtMs: n * 10 }));
  // The slowest host asks, so that most of the jobs have to be put elsewhere before it is its turn.
  const grant = (n: number) => ({ host: `h${(5 * n) % hostCount}`, class: 'batch' as const });
  const plan = (n: number): void => {
    const { host } = grant(n);
    answerGrant({ host, slotId: host, class: 'batch' }, jobs, slots);
  };
  const whole = (n: number): void => {
    const granted = { ...grant(n), slotId: 's', startsInMs: 0 };
    const ordered = planOrder([{ class: 'batch', jobs }]);
    const waiting = { count, units: 100 * count };
    const seen = planSlots({ model: MODEL, class: 'batch' }, { hosts, holdings, nowMs: 0, granted, waiting });
    answerGrant(granted, ordered, seen);
  };
  return { planUs: fastestUs(plan), wholeUs: fastestUs(whole) };
}

function fastestUs(act: (n: number) => void): number {
  const repeats = Array.from({ length: REPEATS }, () => {
    const startedMs = performance.now();
    for (let n = 0; n < ROUNDS; n += 1) act(n);
    return ((performance.now() - startedMs) / ROUNDS) * 1_000;
  });
  return Math.min(...repeats);
}

/** Sums of floating point numbers differ in the last digits. */
function rounded(ms: number): number {
  return Math.round(ms * 1e6) / 1e6;
}
