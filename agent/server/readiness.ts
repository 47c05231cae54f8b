import { pause, untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import type { Engine, ServerFacts } from '../engine/engine.ts';
import { holdAny, listenersOn, ownerOf } from './port-owner.ts';
import type { ProcessTable } from './process-table.ts';
import type { NamedProcess } from './process-tree.ts';
import type { ServerProcess } from './server-process.ts';
import { describeExit } from './server-process.ts';
import { SignsOfLife } from './signs-of-life.ts';

/** A server at work may take its time to answer; one that never does is seen at the deadline. */
const PROBE_MS = 5_000;
/** One look may fall between the birth of a process of ours and its appearance in its tree. */
const STRANGER_LOOKS = 2;
const IN_USE = /EADDRINUSE|address already in use/i;

export type ReadinessOptions = {
  process: ServerProcess;
  engine: Engine;
  model: ConfiguredModel;
  port: number;
  url: string;
  table: ProcessTable;
  /** In use on its GPUs now. */
  usedMiB: () => number;
  deadlineMs: number;
  stallMs: number;
  pollMs: number;
  signal: AbortSignal;
};

/** The server cannot have its port: somebody else listens there. On another port it may well start. */
export class PortTaken extends AppError {
  readonly port: number;
  /** Undefined where that cannot be seen, or where it has gone meanwhile. */
  readonly owner: NamedProcess | undefined;

  constructor(alias: string, { port, owner }: { port: number; owner: NamedProcess | undefined }) {
    const who = owner === undefined ? 'another process' : `${owner.name} (process ${owner.pid})`;
    super(
      'MODEL_FAILED',
      `The server of ${alias} did not get its port: ${who} listens on 127.0.0.1:${port}. End that process if it is a left-over.`,
    );
    this.port = port;
    this.owner = owner;
  }
}

/**
 * Ready, or dead, or timed out, or silent for too long: whichever is first. Ready = our own tree owns the listening socket,
 * and the server answers as this model: an orphan on the same port would answer too.
 */
export async function untilReady(o: ReadinessOptions): Promise<ServerFacts> {
  const { process, engine, model, port, url, pollMs, signal } = o;
  const died = deathOf(o);
  died.catch(() => undefined); // also rejects long after it was ready, when nobody races it any more
  const life = new SignsOfLife({ log: process.log, usedMiB: o.usedMiB });
  const endMs = performance.now() + o.deadlineMs;
  let strangerLooks = 0;
  while (performance.now() < endMs) {
    // The sockets first: whoever opened one by then is in a tree that is read afterwards.
    const listeners = listenersOn(port);
    const isOurs = holdAny(process.tree(), listeners);
    strangerLooks = listeners.size > 0 && !isOurs ? strangerLooks + 1 : 0;
    if (strangerLooks === STRANGER_LOOKS) {
      throw new PortTaken(model.alias, { port, owner: ownerOf(listeners, o.table) });
    }
    const probed = isOurs ? engine.probe({ url, model, signal, deadlineMs: PROBE_MS }) : Promise.resolve(undefined);
    const facts = await untilAborted(Promise.race([probed, died]), signal);
    if (facts !== undefined) return facts;
    const silentMs = await life.silentMs();
    if (silentMs >= o.stallMs) throw stalled(model.alias, silentMs);
    await Promise.race([pause(pollMs, signal), died]);
    signal.throwIfAborted();
  }
  throw new AppError(
    'MODEL_FAILED',
    `The server of ${model.alias} was not ready after ${Math.round(o.deadlineMs / 1000)} s. See its log: ${process.log.path}`,
  );
}

async function deathOf({ process, model, port, table }: ReadinessOptions): Promise<never> {
  const exit = await process.exited;
  const isInUse = exit.code !== 0 && IN_USE.test(await process.log.lastLines());
  if (isInUse) throw new PortTaken(model.alias, { port, owner: ownerOf(listenersOn(port), table) });
  throw new AppError('MODEL_FAILED', `The server of ${model.alias} ${describeExit(exit)} before it was ready.`);
}

function stalled(alias: string, silentMs: number): AppError {
  const seconds = Math.round(silentMs / 1000);
  return new AppError(
    'MODEL_FAILED',
    `The server of ${alias} showed no sign of life for ${seconds} s: no new line in its log, and no more VRAM. ` +
      'If it needs so long, raise times.stall in agent.yaml.',
  );
}
