// A vLLM-Omni without a GPU: its command line, its log, its HTTP answers, and its misbehaviour on demand.
import { pause } from '../../shared/abort.ts';
import { EngineLog } from './lib/engine-log.ts';
import { rampUp } from './lib/forward.ts';
import { answeringServer } from './lib/http-server.ts';
import { endOnSignal } from './lib/lifecycle.ts';
import { floodLog } from './lib/log-flood.ts';
import { answer, ROUTE_LIST } from './lib/omni-api.ts';
import { OmniEngine } from './lib/omni-engine.ts';
import type { ImageContext } from './lib/omni-images.ts';
import { type OmniOptions, omniOptions } from './lib/omni-options.ts';
import { holdPort } from './lib/port.ts';
import { RuntimeError, Vram } from './lib/vram.ts';
import { runWorker, WORKER_ARGUMENT, Workers } from './lib/workers.ts';

const WATCHDOG_MS = 5_000;
const never = new AbortController().signal;

if (process.argv[2] === WORKER_ARGUMENT) await runWorker(process.argv.slice(3));
await main();

async function main(): Promise<void> {
  const options = omniOptions(process.argv.slice(2), process.env);
  if (options.logFlood !== undefined) void floodLog(options.logFlood); // ends with the process
  const log = new EngineLog({ hasLines: options.hasLogs, hasBar: options.hasProgressBar });
  const port = holdPort(options.host, options.port);
  if (port === 'in use') {
    log.error(`OSError: [Errno 98] Address already in use: ('${options.host}', ${options.port})`);
    process.exit(1);
  }
  log.info(`[serve.py:82] Detected diffusion model: ${options.model}`);
  log.info('[async_omni_engine.py:160] [AsyncOmniEngine] Launching Orchestrator thread with 1 stages');
  const titles = workerTitles(options.gpuCount);
  const workers = new Workers(options.worker, titles);
  const vram = new Vram({
    dir: options.ledgerDir,
    holders: titles.map((name, rank) => ({ pid: workers.pids[rank] ?? process.pid, name })),
    lingerMs: options.vramLingerMs,
    devices: { visible: process.env['CUDA_VISIBLE_DEVICES'], count: options.gpuCount },
  });
  const engine = new OmniEngine({ options, vram, log, workers });
  const context: ImageContext = { engine, options, log, host: process.env['GANTRY_SIM_HOST'] ?? '', gpu: vram.gpuName };
  const server = answeringServer(
    (asked) => (options.hangsAfterStartup ? new Promise(() => undefined) : answer(asked, context)),
    ({ request, path, peer }, { status }) => {
      if (options.hasAccessLog) log.plain(`${peer} - "${request.method} ${path} HTTP/1.1" ${status}`);
      if (path.startsWith('/v1/images/') && engine.counts.finished === options.exitAfter)
        process.exit(options.exitCode);
    },
    { log: options.requestLog },
  );
  endOnSignal({
    ...options,
    workers,
    server,
    onSignal: () => log.info('Shutting down FastAPI HTTP server.'),
    onWorkerDeath: (how) => engine.die('A worker process has ended.', how),
  });
  engine.death.addEventListener('abort', () => {
    if (!server.listening) failStart(log);
    if (process.env['VLLM_KEEP_ALIVE_ON_ENGINE_DEATH'] !== '1') void endAfterWatchdog(); // ends the process
  });
  await load({ options, vram, log, workers });
  await port.listen(server);
  log.info(`Starting vLLM API server (pure diffusion mode) on http://${options.host}:${port.port}`);
  for (const route of ROUTE_LIST) log.info(route);
  log.plain('Application startup complete.');
}

/** Reads no weights, but takes the time and the memory; ends the process when the memory does not suffice. */
async function load(o: { options: OmniOptions; vram: Vram; log: EngineLog; workers: Workers }): Promise<void> {
  const { options, vram, log, workers } = o;
  log.info('[diffusion_worker.py:97] Worker 0: Initialized device and distributed environment.');
  const onShare = (share: number): void => {
    if (share >= 0.5 && options.exitAfter === 0) process.exit(options.exitCode);
    if (share >= 0.5 && options.runsOutOfMemoryAtLoad) throw vram.outOfMemory();
    vram.hold(Math.round(options.weightsMiB * (options.leaksSibling ? Math.min(share, 0.5) : share)));
    if (share >= 0.5 && options.leaksSibling) throw new RuntimeError('NCCL error: unhandled cuda error');
  };
  try {
    vram.initialize();
    await Promise.all([workers.ready, rampUp({ totalMs: options.loadMs, onShare, signal: never })]);
  } catch (error) {
    log.error(error instanceof Error ? `${error.name}: ${error.message}` : String(error));
    await workers.ready;
    // The last rank has failed; nobody ends the others.
    if (options.leaksSibling && options.gpuCount > 1) workers.kill(options.gpuCount - 1);
    failStart(log);
  }
  const seconds = (options.loadMs / 1000).toFixed(2);
  const gib = (options.weightsMiB / 1024).toFixed(1);
  log.info(`[diffusers_loader.py:214] Loading weights took ${seconds} seconds`);
  log.info(`[diffusion_model_runner.py:101] Model loading took ${gib} GiB and ${seconds} seconds`);
  log.info('[diffusion_engine.py:188] dummy run to warm up the model');
  log.info('[diffusion_worker.py:310] Worker 0: Scheduler loop started.');
}

function failStart(log: EngineLog): never {
  log.error('Rank 0 scheduler is dead. Please check if there are relevant logs.');
  log.error('EOFError');
  process.exit(1);
}

/** One worker for each GPU; nvidia-smi shows these names. */
function workerTitles(count: number): string[] {
  const title = 'vLLM-Omni::DiffusionWorker';
  return count === 1 ? [title] : Array.from({ length: count }, (_, rank) => `${title}_TP${rank}`);
}

async function endAfterWatchdog(): Promise<void> {
  await pause(WATCHDOG_MS, never);
  process.exit(1);
}
