import { AppError } from '../../shared/errors.ts';
import { childEnvironment } from './child-environment.ts';
import type { ConfiguredModel } from './configured-model.ts';
import type { Engine } from './engines/engine.ts';
import { HOST } from './engines/engine.ts';
import { freePort } from './free-port.ts';
import { words } from './server-failure.ts';
import { ServerLog } from './server-log.ts';
import { ServerProcess } from './server-process.ts';
import type { ServerRecords } from './server-records.ts';

export type StartOptions = {
  slotId: string;
  model: ConfiguredModel;
  engine: Engine;
  gpus: readonly string[];
  records: ServerRecords;
  logDir: string;
  stopGraceMs: number;
  signal: AbortSignal;
};

/** Starts the process of a server, on record before and after: should the agent die meanwhile, the next one finds it. */
export async function startServer(o: StartOptions): Promise<{ process: ServerProcess; port: number }> {
  const { slotId, model, engine, gpus, records, logDir, stopGraceMs, signal } = o;
  const { launch } = model;
  if (launch.kind !== 'owned') throw new Error(`${slotId} is attached: nothing to start`);
  let process: ServerProcess | undefined;
  try {
    const port = await freePort(HOST);
    const { argv, env: engineEnv } = engine.command({ model, port });
    const log = await ServerLog.create({ logDir, slotId });
    const env = childEnvironment({ gpus, engine: engineEnv, model: launch.env });
    await records.put({ slotId, leader: null, logPath: log.path });
    signal.throwIfAborted();
    process = await ServerProcess.start({ argv, ...(launch.cwd !== undefined && { cwd: launch.cwd }), env, log });
    await records.put({ slotId, leader: { pid: process.pid, startTime: process.startTime }, logPath: log.path });
    return { process, port };
  } catch (error) {
    await process?.stop({ graceMs: stopGraceMs });
    await records.remove(slotId).catch(() => undefined); // the disk is what failed, and the record names nobody that lives
    if (error instanceof AppError) throw error;
    const isDiskFull = error instanceof Error && 'code' in error && error.code === 'ENOSPC';
    const message = `The server of ${model.alias} was not started: ${words(error)}`;
    throw new AppError(isDiskFull ? 'DISK_FULL' : 'MODEL_FAILED', message, { cause: error });
  }
}
