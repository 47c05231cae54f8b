import { readFileSync, readdirSync, readlinkSync } from 'node:fs';
import { pause, untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { ConfiguredModel } from './configured-model.ts';
import type { Engine, ServerFacts } from './engines/engine.ts';
import type { ServerProcess } from './server-process.ts';
import { describeExit } from './server-process.ts';

/** A server at work may take its time to answer; one that never does is seen at the deadline. */
const PROBE_MS = 5_000;

/**
 * Ready, or dead, or timed out: whichever is first. Ready = our own tree owns the listening socket, and the server
 * answers as this model: an orphan on the same port would answer too.
 */
export async function untilReady(o: {
  process: ServerProcess;
  engine: Engine;
  model: ConfiguredModel;
  port: number;
  url: string;
  deadlineMs: number;
  pollMs: number;
  signal: AbortSignal;
}): Promise<ServerFacts> {
  const { process, engine, model, url, pollMs, signal } = o;
  const died = process.exited.then((exit) => {
    throw new AppError('MODEL_FAILED', `The server of ${model.alias} ${describeExit(exit)} before it was ready.`);
  });
  died.catch(() => undefined); // also rejects long after it was ready, when nobody races it any more
  const endMs = performance.now() + o.deadlineMs;
  while (performance.now() < endMs) {
    const probed = ownsPort(process.tree(), o.port)
      ? engine.probe({ url, model, signal, deadlineMs: PROBE_MS })
      : Promise.resolve(undefined);
    const facts = await untilAborted(Promise.race([probed, died]), signal);
    if (facts !== undefined) return facts;
    await Promise.race([pause(pollMs, signal), died]);
    signal.throwIfAborted();
  }
  throw new AppError(
    'MODEL_FAILED',
    `The server of ${model.alias} was not ready after ${Math.round(o.deadlineMs / 1000)} s. See its log: ${process.log.path}`,
  );
}

/** True when one of these processes listens on the port. */
function ownsPort(pids: readonly number[], port: number): boolean {
  const inodes = listeningInodes(port);
  return inodes.size > 0 && pids.some((pid) => socketInodes(pid).some((inode) => inodes.has(inode)));
}

function listeningInodes(port: number): Set<string> {
  const suffix = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  const rows = ['/proc/net/tcp', '/proc/net/tcp6'].flatMap((path) => {
    try {
      return readFileSync(path, 'latin1').split('\n').slice(1);
    } catch {
      return []; // no IPv6 on this host
    }
  });
  const listening = rows
    .map((row) => row.trim().split(/\s+/))
    .filter((row) => row[1]?.endsWith(suffix) && row[3] === '0A');
  return new Set(listening.flatMap((row) => row[9] ?? []));
}

function socketInodes(pid: number): string[] {
  try {
    const directory = `/proc/${pid}/fd`;
    return readdirSync(directory).flatMap((fd) => socketInode(`${directory}/${fd}`) ?? []);
  } catch {
    return []; // ended meanwhile
  }
}

function socketInode(path: string): string | undefined {
  try {
    return /^socket:\[(\d+)\]$/.exec(readlinkSync(path))?.[1];
  } catch {
    return undefined; // closed meanwhile
  }
}
