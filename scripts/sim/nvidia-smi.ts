// Answers like NVIDIA's own program, from the ledger of the simulated engines.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { pause } from '../../shared/abort.ts';
import { Ledger, type LedgerGpu } from './lib/ledger.ts';
import { APP_FIELDS, appRows, csv, type Fields, GPU_FIELDS, gpuRows } from './lib/smi-csv.ts';
import { inventoryXml } from './lib/smi-xml.ts';

const ledgerDir = process.env['GANTRY_SIM_LEDGER'];
const never = new AbortController().signal;
process.stdout.on('error', () => process.exit(0)); // the reader of the loop has gone
await main();

async function main(): Promise<void> {
  const options = parse(process.argv.slice(2));
  if (ledgerDir === undefined) {
    fail(
      9,
      "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. (GANTRY_SIM_LEDGER is unset.)",
    );
  }
  const ledger = new Ledger(ledgerDir);
  for (let ticks = 0; ; ticks += 1) {
    await obeyFault(ledgerDir);
    const gpus = ledger.gpus().filter((gpu) => isChosen(gpu, options.id));
    if (gpus.length === 0) fail(6, 'No devices were found');
    process.stdout.write(
      report(ledger, gpus, ticks === 0 ? options : { ...options, format: `${options.format},noheader` }),
    );
    const intervalMs = loopInterval(options);
    if (intervalMs === undefined) return;
    await pause(intervalMs, never);
  }
}

type Options = ReturnType<typeof parse>;

function report(ledger: Ledger, gpus: LedgerGpu[], options: Options): string {
  if (options['list-gpus']) return gpus.map((gpu) => `GPU ${gpu.index}: ${gpu.name} (UUID: ${gpu.uuid})\n`).join('');
  if (options.query && options['xml-format']) return inventoryXml(ledger, gpus);
  const style = options.format.split(',').map((word) => word.trim());
  if (options['query-gpu'] !== undefined) {
    return csv(gpuRows(ledger, gpus), chosenFields(options['query-gpu'], GPU_FIELDS), style);
  }
  if (options['query-compute-apps'] !== undefined) {
    return csv(appRows(ledger, gpus), chosenFields(options['query-compute-apps'], APP_FIELDS), style);
  }
  return fail(2, 'The simulated nvidia-smi knows -L, -q -x, --query-gpu=FIELDS and --query-compute-apps=FIELDS.');
}

function chosenFields<Row>(list: string, known: Fields<Row>): Fields<Row> {
  const names = list.split(',').map((name) => name.trim());
  return new Map(
    names.map((name) => [name, known.get(name) ?? fail(2, `Field "${name}" is not a valid field to query.\n`)]),
  );
}

function parse(argv: string[]) {
  try {
    return parseArgs({
      // The real program takes -lms, an option of one dash and three letters.
      args: argv.map((word) => (word === '-lms' ? '--loop-ms' : word)),
      options: {
        'query-gpu': { type: 'string' },
        'query-compute-apps': { type: 'string' },
        format: { type: 'string', default: 'csv' },
        query: { type: 'boolean', short: 'q' },
        'xml-format': { type: 'boolean', short: 'x' },
        'list-gpus': { type: 'boolean', short: 'L' },
        id: { type: 'string', short: 'i' },
        loop: { type: 'string', short: 'l' },
        'loop-ms': { type: 'string' },
      },
    }).values;
  } catch {
    return fail(2, `Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.`);
  }
}

function loopInterval(options: Options): number | undefined {
  if (options['loop-ms'] !== undefined) return Number(options['loop-ms']);
  return options.loop === undefined ? undefined : Number(options.loop) * 1000;
}

function isChosen(gpu: LedgerGpu, id: string | undefined): boolean {
  return id === undefined || id.split(',').some((one) => one === gpu.uuid || one === String(gpu.index));
}

type Fault = { mode: 'hang' } | { mode: 'exit'; code: number; text: string };

/** `nvidia-smi.fault.json` in the ledger: {"mode":"hang"} or {"mode":"exit","code":9,"text":"…"}; read before every answer. */
async function obeyFault(dir: string): Promise<void> {
  for (;;) {
    let fault: Fault;
    try {
      fault = JSON.parse(readFileSync(join(dir, 'nvidia-smi.fault.json'), 'utf8')) as Fault; // `any` by its own type
    } catch {
      return; // no fault wanted
    }
    if (fault.mode === 'exit') fail(fault.code, fault.text);
    await pause(50, never); // silent until the file is taken away
  }
}

/** The real program writes its complaints on stdout. */
function fail(code: number, text: string): never {
  process.stdout.write(`${text}\n`);
  process.exit(code);
}
