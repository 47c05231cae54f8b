// Answers like NVIDIA's own program, from the ledger of the simulated engines.
import { randomBytes } from 'node:crypto';
import { writeSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { pause } from '../../shared/abort.ts';
import { Ledger, type LedgerGpu } from './lib/ledger.ts';
import { APP_FIELDS, appRows, busId, csv, type Fields, GPU_FIELDS, gpuRows } from './lib/smi-csv.ts';
import type { Fault, Question } from './lib/smi-fault.ts';
import { faultFor, spoiled } from './lib/smi-fault.ts';
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
  const intervalMs = loopInterval(options);
  const question = questionOf(options);
  for (let ticks = 0; ; ticks += 1) {
    const fault = await untilAnswerable(question, ledgerDir);
    if (fault?.mode === 'silent') process.exit(0);
    if (fault?.mode === 'exit') fail(fault.code, fault.text);
    const text = answer(ledger, {
      fault,
      options: ticks === 0 ? options : { ...options, format: `${options.format},noheader` },
    });
    await say(fault?.mode === 'garbage' ? randomBytes(fault.bytes) : fault?.mode === 'half' ? half(text) : text);
    if (fault?.mode === 'half') process.exit(0);
    if (fault?.mode === 'warn') await say(`${fault.text}\n`);
    if (intervalMs === undefined) process.exit(fault?.mode === 'warn' ? fault.code : 0);
    await pause(intervalMs, never);
  }
}

type Options = ReturnType<typeof parse>;

function answer(ledger: Ledger, { fault, options }: { fault: Fault | undefined; options: Options }): string {
  const gpus = ledger.gpus().filter((gpu) => isChosen(gpu, options.id));
  if (gpus.length === 0) fail(6, 'No devices were found');
  const lost = fault?.mode === 'lost' ? gpus.filter(({ index }) => [fault.index].flat().includes(index)) : [];
  const sentences = lost.map(lossOf).join('');
  if (options['list-gpus']) return listed(gpus.filter((gpu) => !lost.includes(gpu))) + sentences;
  if (lost.length > 0) fail(15, sentences.trimEnd());
  return report(ledger, { gpus, fault, options });
}

function report(
  ledger: Ledger,
  { gpus, fault, options }: { gpus: LedgerGpu[]; fault: Fault | undefined; options: Options },
): string {
  if (options.query && options['xml-format']) return inventoryXml(ledger, gpus);
  const style = options.format.split(',').map((word) => word.trim());
  if (options['query-gpu'] !== undefined) {
    const fields = chosenFields(options['query-gpu'], GPU_FIELDS);
    return spoiled(csv(gpuRows(ledger, gpus), fields, style), { fault, names: [...fields.keys()] });
  }
  if (options['query-compute-apps'] !== undefined) {
    return csv(appRows(ledger, gpus), chosenFields(options['query-compute-apps'], APP_FIELDS), style);
  }
  return fail(2, 'The simulated nvidia-smi knows -L, -q -x, --query-gpu=FIELDS and --query-compute-apps=FIELDS.');
}

function listed(gpus: readonly LedgerGpu[]): string {
  return gpus
    .flatMap((gpu) => [
      `GPU ${gpu.index}: ${gpu.name} (UUID: ${gpu.uuid})\n`,
      ...(gpu.mig ?? []).map(
        ({ profile, index, uuid }) =>
          `  MIG ${profile.padEnd(12)}Device ${String(index).padStart(2)}: (UUID: ${uuid})\n`,
      ),
    ])
    .join('');
}

function lossOf(gpu: LedgerGpu): string {
  return `Unable to determine the device handle for GPU${busId(gpu).slice(4)}: GPU is lost.  Reboot the system to recover this GPU\n`;
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

function questionOf(options: Options): Question {
  if (options['list-gpus']) return 'list';
  if (options.query) return 'xml';
  if (options['query-compute-apps'] !== undefined) return 'apps';
  return loopInterval(options) === undefined ? 'gpus' : 'loop';
}

function loopInterval(options: Options): number | undefined {
  if (options['loop-ms'] !== undefined) return Number(options['loop-ms']);
  return options.loop === undefined ? undefined : Number(options.loop) * 1000;
}

/** By UUID, index or PCI bus id, as the real one. */
function isChosen(gpu: LedgerGpu, id: string | undefined): boolean {
  const names = [gpu.uuid, String(gpu.index), busId(gpu), busId(gpu).slice(4)];
  return id === undefined || id.split(',').some((one) => names.includes(one));
}

/** Hangs for as long as it is told to. */
async function untilAnswerable(question: Question, dir: string): Promise<Fault | undefined> {
  for (;;) {
    const fault = faultFor(question, dir);
    if (fault?.mode !== 'hang') return fault;
    if (fault.ignoresTerm === true && process.listenerCount('SIGTERM') === 0) process.on('SIGTERM', () => undefined);
    await pause(50, never); // silent until the file is taken away
  }
}

/** The first half, within a line. */
function half(text: string): string {
  return text.slice(0, Math.ceil(text.length / 2)).trimEnd();
}

/** All of it is on its way before the program may exit. */
async function say(what: string | Buffer): Promise<void> {
  await new Promise<void>((resolve) => process.stdout.write(what, () => resolve()));
}

/** The real program writes its complaints on stdout. */
function fail(code: number, text: string): never {
  writeSync(1, `${text}\n`);
  process.exit(code);
}
