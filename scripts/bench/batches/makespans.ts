import type { BenchRow } from '../row.ts';
import { absoluteRow, figure, notRun, ratioRow } from '../row.ts';
import { median } from '../median.ts';
import { lowerBoundMs, optimumMs, quantile } from './bounds.ts';
import { mixedJobs, uniformJobs } from './fixture.ts';
import { HOW_TO_INSTALL } from './peers.ts';

export type Kind = 'uniform40' | 'mixed40';
export const KINDS: readonly Kind[] = ['uniform40', 'mixed40'];
export const JOBS = { uniform40: uniformJobs(), mixed40: mixedJobs() };

/** A load balancer's makespans of one kind; undefined where it is not installed. */
export type PeerRuns = { version: string; makespansMs: Record<Kind, readonly number[]> } | undefined;

export type SmallBatch = { count: number; makespanMs: number; lastHost: number };

/** All that was measured of batches of one model. Every list is of runs one after another, and its median counts. */
export type Measured = {
  /** Of the engines, asked directly in this run. */
  rates: readonly number[];
  cold: Record<Kind, number>;
  warm: Record<Kind, readonly number[]>;
  /** What batch_generate itself published of the uniform batches; it has no figure for several batches at once. */
  published: readonly number[];
  haproxy: PeerRuns;
  nginx: PeerRuns;
  roundRobinMs: Record<Kind, number>;
  /** Sixteen jobs on four slots: own clock over the lower bound, and what was published. */
  sixteen: { uniform: readonly number[]; mixed: readonly number[]; published: readonly number[] };
  small: readonly SmallBatch[];
  gapsMs: Record<Kind, readonly number[]>;
  note: string;
};

const GATES = {
  lowerBound: { uniform40: 1.03, mixed40: 1.05 },
  haproxy: { uniform40: 1.02, mixed40: 1.0 },
  nginx: { uniform40: 0.55, mixed40: 0.55 },
};
const GAP_GATE_MS = 3;
const PROMISE = { ten: 1.05, four: 1.1 };

/** PURE. B1, B2, B3, B8, the small batches of B9, and the gap between two jobs. */
export function makespanRows(o: Measured): BenchRow[] {
  return [
    ...KINDS.flatMap((kind) => againstBound(o, kind)),
    ...KINDS.map((kind) => againstPeer(o, { kind, peer: 'haproxy' })),
    ...KINDS.map((kind) => againstPeer(o, { kind, peer: 'nginx' })),
    ...KINDS.map((kind) => roundRobin(o, kind)),
    ...promises(o),
    ...o.small.map((batch) => smallBatch(o, batch)),
    ...gaps(o),
  ];
}

function againstBound(o: Measured, kind: Kind): BenchRow[] {
  const reference = { name: 'lower bound', value: boundOf(o, kind) / 1000 };
  const common = { name: `${kind}: makespan`, unit: 's', reference };
  const runs = o.warm[kind];
  return [
    ratioRow({
      ...common,
      id: `B1 ${kind} cold`,
      value: o.cold[kind] / 1000,
      most: null,
      note: 'nothing is learned yet',
    }),
    ratioRow({
      ...{ ...common, id: `B1 ${kind}`, value: median(runs) / 1000, most: GATES.lowerBound[kind] },
      note: `median of ${runs.length}: ${runs.map((ms) => figure(ms / boundOf(o, kind))).join(', ')} x; ${o.note}`,
    }),
  ];
}

function againstPeer(o: Measured, { kind, peer }: { kind: Kind; peer: 'haproxy' | 'nginx' }): BenchRow {
  const runs = o[peer];
  const gate = GATES[peer][kind];
  const what = peer === 'haproxy' ? 'HAProxy leastconn, maxconn 1' : 'nginx least_conn, no weights';
  const row = { id: `${peer === 'haproxy' ? 'B2' : 'B3'} ${kind}`, name: `${kind}: makespan`, unit: 's' };
  if (runs === undefined) {
    const note = `${peer} is not installed: ${HOW_TO_INSTALL}`;
    return notRun({ ...row, reference: what, gate: `<= ${gate.toFixed(2)} x`, note });
  }
  const makespans = runs.makespansMs[kind];
  const against = makespans.map((ms) => figure(ms / boundOf(o, kind))).join(', ');
  return ratioRow({
    ...{ ...row, value: median(o.warm[kind]) / 1000, most: gate },
    reference: { name: `${what} (${runs.version})`, value: median(makespans) / 1000 },
    note: `it took ${against} x the lower bound`,
  });
}

function roundRobin(o: Measured, kind: Kind): BenchRow {
  return ratioRow({
    ...{ id: `B3 ${kind} dealt`, name: `${kind}: makespan`, value: median(o.warm[kind]) / 1000, unit: 's' },
    ...{ reference: { name: 'client-side round robin', value: o.roundRobinMs[kind] / 1000 }, most: null },
  });
}

function promises(o: Measured): BenchRow[] {
  const rows = [
    ['B8 10 a slot', 'uniform40, as published', o.published, PROMISE.ten],
    ['B8 10 a slot, mixed', 'mixed40, own clock', o.warm.mixed40.map((ms) => ms / boundOf(o, 'mixed40')), PROMISE.ten],
    ['B8 4 a slot', '16 equal jobs, as published', o.sixteen.published, PROMISE.four],
    ['B8 4 a slot, own clock', '16 equal jobs', o.sixteen.uniform, PROMISE.four],
    ['B8 4 a slot, mixed', '16 mixed jobs, own clock', o.sixteen.mixed, PROMISE.four],
  ] as const;
  return rows.map(([id, name, ratios, most]) =>
    ratioRow({
      ...{ id, name, value: median(ratios), unit: 'x', reference: { name: 'lower bound', value: 1 }, most },
      note: `median of ${ratios.map(figure).join(', ')}`,
    }),
  );
}

/** At most one job of the host that ended last above the optimum. */
function smallBatch({ rates }: Measured, { count, makespanMs, lastHost }: SmallBatch): BenchRow {
  const [job] = JOBS.uniform40;
  const workMs = job?.workMs ?? 0;
  const optimum = optimumMs(count, { workMs, rates });
  const mostMs = optimum + workMs / (rates[lastHost] ?? 1);
  return absoluteRow({
    ...{ id: `B9 ${count} jobs`, name: 'small batch: makespan', value: makespanMs / 1000, unit: 's' },
    ...{ reference: `optimum: ${figure(optimum / 1000)} s`, most: Number((mostMs / 1000).toFixed(3)) },
    note: `${figure(makespanMs / optimum)} x the optimum; the gate is the optimum and one more job of the host that ended last`,
  });
}

function gaps({ gapsMs }: Measured): BenchRow[] {
  const reference = 'last byte of an engine to its next request, while work waits';
  const row = (id: string, values: readonly number[], o: { share: number; most: number | null }): BenchRow =>
    absoluteRow({ id, name: 'idle slot', value: quantile(values, o.share), unit: 'ms', reference, most: o.most });
  return [
    row('slotGapMs p50', gapsMs.uniform40, { share: 0.5, most: GAP_GATE_MS }),
    row('slotGapMs p95', gapsMs.uniform40, { share: 0.95, most: null }),
    row('slotGapMs mixed40 p50', gapsMs.mixed40, { share: 0.5, most: GAP_GATE_MS }),
    row('slotGapMs mixed40 p95', gapsMs.mixed40, { share: 0.95, most: null }),
  ];
}

function boundOf({ rates }: Measured, kind: Kind): number {
  return lowerBoundMs(
    JOBS[kind].map(({ workMs }) => workMs),
    rates,
  );
}
