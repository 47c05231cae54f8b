// Step1X-Edit-Docker without a GPU: its servers as forks that work, and the published defects on demand.
import { EngineLog } from './lib/engine-log.ts';
import { answeringServer } from './lib/http-server.ts';
import { endOnSignal } from './lib/lifecycle.ts';
import { floodLog } from './lib/log-flood.ts';
import { type HeldPort, holdPort } from './lib/port.ts';
import { Step1xApi } from './lib/step1x-api.ts';
import { Step1xEngine } from './lib/step1x-engine.ts';
import { serveMcp } from './lib/step1x-mcp.ts';
import { type Step1xOptions, step1xOptions } from './lib/step1x-options.ts';
import { Vram } from './lib/vram.ts';
import { runWorker, WORKER_ARGUMENT, Workers } from './lib/workers.ts';

if (process.argv[2] === WORKER_ARGUMENT) await runWorker(process.argv.slice(3));
await main();

async function main(): Promise<void> {
  const options = step1xOptions(process.argv.slice(2), process.env);
  if (options.logFlood !== undefined) void floodLog(options.logFlood); // ends with the process
  // A server knows whether it has its port before it does anything else; over MCP there is none.
  const port = options.isMcp ? undefined : heldPort(options);
  if (options.exitAfter === 0) process.exit(options.exitCode);
  const workers = new Workers(options.worker, ['python3']);
  const vram = new Vram({
    dir: options.ledgerDir,
    holders: [{ pid: workers.pids[0] ?? process.pid, name: 'python3' }],
    lingerMs: options.vramLingerMs,
    devices: { visible: process.env['CUDA_VISIBLE_DEVICES'], count: 1 },
  });
  const engine = new Step1xEngine({ options, vram, log: new EngineLog({ hasLines: true, hasBar: true }), workers });
  const place = { host: process.env['GANTRY_SIM_HOST'] ?? '', gpu: vram.gpuName };
  if (port === undefined) {
    await serveMcp({ engine, facts: { model: 'Step1X-Edit', ...place }, hasStrayPrints: options.hasStrayPrints });
    process.exit(0);
  }
  const api = new Step1xApi({ engine, options, ...place });
  const server = answeringServer(
    (asked) => api.answer(asked),
    ({ request, path, peer }, { status }) => {
      say(`${peer} - "${request.method} ${path} HTTP/1.1" ${status}`);
      if (path.startsWith('/api/edit') && engine.edits === options.exitAfter) process.exit(options.exitCode);
    },
    { log: options.requestLog },
  );
  endOnSignal({
    ...options,
    workers,
    server,
    onSignal: () => say('Shutting down'),
    onWorkerDeath: () => process.exit(1),
  });
  await workers.ready;
  say(`Started server process [${process.pid}]`);
  await port.listen(server);
  say('Application startup complete.');
  say(`Uvicorn running on http://${options.host}:${port.port} (Press CTRL+C to quit)`);
}

function heldPort({ host, port }: Step1xOptions): HeldPort {
  const held = holdPort(host, port);
  if (held !== 'in use') return held;
  say(`[Errno 98] error while attempting to bind on address ('${host}', ${port}): address already in use`, 'ERROR');
  process.exit(1);
}

/** Uvicorn's lines: the level and a colon, padded to one width. */
function say(text: string, level = 'INFO'): void {
  process.stderr.write(`${`${level}:`.padEnd(10)}${text}\n`);
}
