// A vLLM-Omni without a GPU: its command line, its log, its HTTP answers, and its misbehaviour on demand.
import { pause } from '../../shared/abort.ts';
import { EngineLog } from './lib/engine-log.ts';
import { rampUp } from './lib/forward.ts';
import { answeringServer } from './lib/http-server.ts';
import { endOnSignal } from './lib/lifecycle.ts';
import { answer, ROUTE_LIST } from './lib/omni-api.ts';
import { OmniEngine } from './lib/omni-engine.ts';
import type { ImageContext } from './lib/omni-images.ts';
import { type OmniOptions, omniOptions } from './lib/omni-options.ts';
import { holdPort } from './lib/port.ts';
import { CudaOutOfMemory, Vram } from './lib/vram.ts';
import { runWorker, startWorker, WORKER_ARGUMENT, WORKER_TITLE } from './lib/worker.ts';

const WATCHDOG_MS = 5_000;
const never = new AbortController().signal;

if (process.argv[2] === WORKER_ARGUMENT) await runWorker(process.argv[3]);
await main();

async function main(): Promise<void> {
  const options = omniOptions(process.argv.slice(2), process.env);
  const log = new EngineLog({ hasLines: options.hasLogs, hasBar: options.hasProgressBar });
  const port = holdPort(options.host, options.port);
  if (port === 'in use') {
    log.error(`OSError: [Errno 98] Address already in use: ('${options.host}', ${options.port})`);
    process.exit(1);
  }
  log.info(`[serve.py:82] Detected diffusion model: ${options.model}`);
  log.info('[async_omni_engine.py:160] [AsyncOmniEngine] Launching Orchestrator thread with 1 stages');
  const worker = options.worker && startWorker(options.worker);
  const vram = new Vram({
    dir: options.ledgerDir,
    pid: worker?.pid ?? process.pid,
    name: WORKER_TITLE,
    lingerMs: options.vramLingerMs,
    devices: { visible: process.env['CUDA_VISIBLE_DEVICES'], count: options.gpuCount },
  });
  const engine = new OmniEngine({ options, vram, log, worker });
  const context: ImageContext = { engine, options, host: process.env['GANTRY_SIM_HOST'] ?? '', gpu: vram.gpuName };
  const server = answeringServer(
    (asked) => (options.hangsAfterStartup ? new Promise(() => undefined) : answer(asked, context)),
    ({ request, path }, { status }) => {
      const peer = `${request.socket.remoteAddress}:${request.socket.remotePort}`;
      if (options.hasAccessLog) log.plain(`${peer} - "${request.method} ${path} HTTP/1.1" ${status}`);
      if (path.startsWith('/v1/images/') && engine.counts.finished === options.exitAfter)
        process.exit(options.exitCode);
    },
  );
  endOnSignal({
    ...options,
    worker,
    server,
    onSignal: () => log.info('Shutting down FastAPI HTTP server.'),
    onWorkerDeath: () => engine.die('A worker process has ended.'),
  });
  engine.death.addEventListener('abort', () => {
    if (process.env['VLLM_KEEP_ALIVE_ON_ENGINE_DEATH'] !== '1') void endAfterWatchdog(); // ends the process
  });
  await load(options, vram, log);
  await port.listen(server);
  log.info(`Starting vLLM API server (pure diffusion mode) on http://${options.host}:${port.port}`);
  for (const route of ROUTE_LIST) log.info(route);
  log.plain('Application startup complete.');
}

/** Reads no weights, but takes the time and the memory; ends the process when the memory does not suffice. */
async function load(options: OmniOptions, vram: Vram, log: EngineLog): Promise<void> {
  log.info('[diffusion_worker.py:97] Worker 0: Initialized device and distributed environment.');
  const onShare = (share: number): void => {
    if (share >= 0.5 && options.exitAfter === 0) process.exit(options.exitCode);
    if (share >= 0.5 && options.runsOutOfMemoryAtLoad) {
      throw new CudaOutOfMemory('CUDA out of memory. Tried to allocate 2.00 GiB.');
    }
    vram.hold(Math.round(options.weightsMiB * share));
  };
  try {
    await rampUp({ totalMs: options.loadMs, onShare, signal: never });
  } catch (error) {
    if (!(error instanceof CudaOutOfMemory)) throw error;
    log.error(`torch.OutOfMemoryError: ${error.message}`);
    log.error('Rank 0 scheduler is dead. Please check if there are relevant logs.');
    log.error('EOFError');
    process.exit(1);
  }
  const seconds = (options.loadMs / 1000).toFixed(2);
  const gib = (options.weightsMiB / 1024).toFixed(1);
  log.info(`[diffusers_loader.py:214] Loading weights took ${seconds} seconds`);
  log.info(`[diffusion_model_runner.py:101] Model loading took ${gib} GiB and ${seconds} seconds`);
  log.info('[diffusion_engine.py:188] dummy run to warm up the model');
  log.info('[diffusion_worker.py:310] Worker 0: Scheduler loop started.');
}

async function endAfterWatchdog(): Promise<void> {
  await pause(WATCHDOG_MS, never);
  process.exit(1);
}
