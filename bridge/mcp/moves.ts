import { z } from 'zod';
import { Deadline, pause } from '../../shared/abort.ts';
import { toAppError } from '../../shared/errors.ts';
import type { ModelStatus } from '../../shared/host-snapshot.ts';
import type { ModelId } from '../../shared/job.ts';
import type { ModelMove } from '../../shared/protocol.ts';
import type { Fleet } from '../fleet/fleet.ts';
import { MovedJson } from '../fleet/moved-json.ts';
import { hostGpuJson, HostGpuJson } from './status-json.ts';
import type { ToolContext } from './tool.ts';
import { gb, seconds } from './units.ts';
import { patienceMs } from './wait.ts';

export type MoveTarget = { host: string; model: ModelId };
export type MoveKind = 'load' | 'offload' | 'release';

/** The fleet has no event for a single report, and one comes within this time. */
const REPORT_MS = 1_000;
const REPORT_STEP_MS = 50;

export const MoveAnswer = z.object({
  status: z.string(),
  message: z.string(),
  hosts: z.array(MovedJson),
  gpu_status: z.array(HostGpuJson),
});
export type MoveAnswer = z.input<typeof MoveAnswer>;

/**
 * Moves models, all at the same time, and waits as long as the client does; the move itself goes on, and asking again
 * joins it. One host's failure is told beside the others' success; if all fail, the first failure is the answer.
 */
export async function moveModels(
  to: MoveKind,
  targets: readonly MoveTarget[],
  o: { fleet: Fleet; context: ToolContext; waitSeconds: number | undefined },
): Promise<MoveAnswer> {
  o.context.progress(() => ({ message: targets.map((target) => doingText(to, target, o.fleet)).join('; ') }));
  using patience = new Deadline({ ms: patienceMs(o.context, o.waitSeconds), signal: o.context.signal });
  const startedMs = performance.now();
  const moved = await Promise.allSettled(targets.map((target) => moveOne(to, target, { ...o, patience, startedMs })));
  o.context.signal.throwIfAborted();
  const failed = moved.find((result) => result.status === 'rejected');
  if (failed !== undefined && moved.every((result) => result.status === 'rejected')) throw failed.reason;
  const hosts = moved.map((result, index) => {
    if (result.status === 'fulfilled') return result.value;
    const error = toAppError(result.reason);
    const { host, model } = targets[index] ?? { host: '', model: '' };
    return { host, model, status: 'failed', state: 'unknown', message: `${error.code}: ${error.message}` };
  });
  await untilReported(hosts, o);
  const names = new Set(targets.map(({ host }) => host));
  return {
    status: failed !== undefined ? 'partial' : hosts.some(({ status }) => status === 'running') ? 'running' : 'success',
    message: hosts.map(({ host, message }) => (hosts.length === 1 ? message : `${host}: ${message}`)).join(' '),
    hosts,
    gpu_status: o.fleet
      .hosts()
      .filter(({ name }) => names.has(name))
      .map((host) => hostGpuJson(host, undefined)),
  };
}

/**
 * A host reports what happened a moment after it answered. Without this wait the answer would contradict itself: a model
 * that is offloaded beside a status in which it still holds the GPU.
 */
async function untilReported(
  moved: readonly z.input<typeof MovedJson>[],
  { fleet, context }: { fleet: Fleet; context: ToolContext },
): Promise<void> {
  const ended = moved.filter(({ done }) => done !== undefined && done !== 'nothing');
  const isReported = (): boolean =>
    ended.every(({ host, model, state }) => statusOf({ host, model }, fleet)?.state === state);
  const startedMs = performance.now();
  while (!isReported() && performance.now() - startedMs < REPORT_MS) await pause(REPORT_STEP_MS, context.signal);
  context.signal.throwIfAborted();
}

/** By the host's latest status, such as "a: loading klein, usually 74 s, 41 s so far". */
function doingText(to: MoveKind, { host, model }: MoveTarget, fleet: Fleet): string {
  return `${host}: ${statusOf({ host, model }, fleet)?.detail ?? `${to} ${model}`}`;
}

function statusOf({ host, model }: MoveTarget, fleet: Fleet): ModelStatus | undefined {
  const snapshot = fleet.hosts().find(({ name }) => name === host)?.snapshot;
  return snapshot?.models.find((each) => each.model === model);
}

type Waiting = { fleet: Fleet; context: ToolContext; patience: Deadline; startedMs: number };

async function moveOne(to: MoveKind, { host, model }: MoveTarget, o: Waiting): Promise<z.input<typeof MovedJson>> {
  try {
    while (true) {
      const move = await o.fleet.request(host, `model.${to}`, { model }, o.patience.signal);
      if (move.readyInMs === undefined) return endedJson(host, move);
      if (o.patience.signal.aborted) return runningJson({ host, model, readyInMs: move.readyInMs }, o);
    }
  } catch (error) {
    if (!o.patience.isExpired) throw error;
    return runningJson({ host, model, readyInMs: undefined }, o);
  }
}

function endedJson(host: string, move: ModelMove): z.input<typeof MovedJson> {
  return {
    host,
    model: move.model,
    status: 'success',
    state: move.state,
    done: move.done,
    message: move.message,
    took_seconds: seconds(move.tookMs),
    ...(move.heldAwayMs > 0 && { stays_away_seconds: seconds(move.heldAwayMs) }),
    ...(move.vram !== undefined && {
      vram: {
        free_before_gb: gb(move.vram.freeBeforeMiB),
        free_after_gb: gb(move.vram.freeAfterMiB),
        held_before_gb: gb(move.vram.heldBeforeMiB),
        held_after_gb: gb(move.vram.heldAfterMiB),
      },
    }),
  };
}

function runningJson(
  { host, model, readyInMs }: MoveTarget & { readyInMs: number | undefined },
  { fleet, startedMs }: Waiting,
): z.input<typeof MovedJson> {
  const status = statusOf({ host, model }, fleet);
  const usualMs = status === undefined ? undefined : status.state === 'offloaded' ? status.wakeMs : status.loadMs;
  const elapsedMs = performance.now() - startedMs;
  const usual = usualMs === undefined ? '' : `, usually ${Math.ceil(usualMs / 1_000)} s`;
  const after = `after ${Math.round(elapsedMs / 1_000)} s`;
  // What is usual is the load that follows it.
  const what =
    status?.download === undefined
      ? `Still under way ${after}${usual}.`
      : `Still ${status.detail ?? 'downloading'} ${after}.`;
  return {
    host,
    model,
    status: 'running',
    state: status?.state ?? 'unknown',
    message: `${what} It goes on; call again to wait for its end.`,
    elapsed_seconds: seconds(elapsedMs),
    ...(usualMs !== undefined && { usual_seconds: seconds(usualMs) }),
    ...(readyInMs !== undefined && { ready_in_seconds: seconds(readyInMs) }),
  };
}
