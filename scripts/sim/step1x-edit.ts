// Step1X-Edit-Docker without a GPU: unified_server.py or api.py as a fork that works, and the published defects on demand.
import { EngineLog } from './lib/engine-log.ts';
import { answeringServer } from './lib/http-server.ts';
import { endOnSignal } from './lib/lifecycle.ts';
import { holdPort } from './lib/port.ts';
import { Step1xApi } from './lib/step1x-api.ts';
import { Step1xEngine } from './lib/step1x-engine.ts';
import { step1xOptions } from './lib/step1x-options.ts';
import { Vram } from './lib/vram.ts';
import { runWorker, startWorker, WORKER_ARGUMENT } from './lib/worker.ts';

if (process.argv[2] === WORKER_ARGUMENT) await runWorker(process.argv[3]);
await main();

async function main(): Promise<void> {
  const options = step1xOptions(process.argv.slice(2), process.env);
  const say = (text: string): boolean => process.stderr.write(`INFO:     ${text}\n`);
  const port = holdPort(options.host, options.port);
  if (port === 'in use') {
    process.stderr.write(
      `ERROR:    [Errno 98] error while attempting to bind on address ('${options.host}', ${options.port}): address already in use\n`,
    );
    process.exit(1);
  }
  if (options.exitAfter === 0) process.exit(options.exitCode);
  const worker = options.worker && startWorker(options.worker);
  const vram = new Vram({
    dir: options.ledgerDir,
    pid: worker?.pid ?? process.pid,
    name: 'python3',
    lingerMs: options.vramLingerMs,
    devices: { visible: process.env['CUDA_VISIBLE_DEVICES'], count: 1 },
  });
  const engine = new Step1xEngine({ options, vram, log: new EngineLog({ hasLines: true, hasBar: true }), worker });
  const api = new Step1xApi({ engine, options, host: process.env['GANTRY_SIM_HOST'] ?? '', gpu: vram.gpuName });
  const server = answeringServer(
    (asked) => api.answer(asked),
    ({ request, path }, { status }) => {
      say(
        `${request.socket.remoteAddress}:${request.socket.remotePort} - "${request.method} ${path} HTTP/1.1" ${status}`,
      );
      if (path.startsWith('/api/edit') && engine.edits === options.exitAfter) process.exit(options.exitCode);
    },
  );
  endOnSignal({
    ...options,
    worker,
    server,
    onSignal: () => say('Shutting down'),
    onWorkerDeath: () => process.exit(1),
  });
  say(`Started server process [${process.pid}]`);
  await port.listen(server);
  say('Application startup complete.');
  say(`Uvicorn running on http://${options.host}:${port.port} (Press CTRL+C to quit)`);
}
