import type { Log } from '../../shared/log.ts';
import type { GpuTable } from './gpu-table.ts';
import type { NvidiaSmi } from './nvidia-smi.ts';
import type { SmiOutput } from './smi-health.ts';
import { healthOf, namedLosses } from './smi-health.ts';
import type { Fields, GpuRow } from './smi-rows.ts';
import { parseDeviceList } from './smi-rows.ts';

export type LostGpusOptions = {
  smi: NvidiaSmi;
  table: GpuTable;
  /** What every question asks for. */
  fields: () => Fields;
  /** True where the answer was about a field that this driver does not know: then it is worth another question. */
  takesNextRung: (output: SmiOutput) => boolean;
  log: Log;
  onRows: (rows: readonly GpuRow[]) => void;
  onLost: () => void;
};

/** nvidia-smi numbers GPUs without gaps but for lost ones: where the list itself fails, each is tried. */
const MOST_GPUS = 32;

/** Which of several GPUs is lost: one dead GPU can take the answer for all. */
export class LostGpus {
  readonly #o: LostGpusOptions;

  constructor(options: LostGpusOptions) {
    this.#o = options;
  }

  /** Asks each GPU alone. Of those that never told their UUID, the list of GPUs has it, where there is one. */
  async find(said: string, signal: AbortSignal): Promise<void> {
    this.hear(said);
    const known = this.#o.table.living() ?? this.#o.table.uuids();
    if (known.length > 0) {
      for (const uuid of known) if (!(await this.#doesAnswer(uuid, signal))) this.#lose(uuid, said);
      return;
    }
    const list = await this.#o.smi.run(['-L'], signal).catch(() => undefined); // then the indices have to do
    const listed = parseDeviceList(list?.stdout ?? '').filter(({ mig }) => mig === undefined);
    for (const { gpuUuid } of listed) await this.#doesAnswer(gpuUuid, signal);
    if (listed.length > 0) return this.hear(list?.stdout ?? '');
    let unanswered = 0;
    // The end of the numbers is said as clearly as a loss is; two gaps without either are the end too.
    for (let index = 0; index < MOST_GPUS && unanswered < 2 && !signal.aborted; index += 1) {
      const answer = await this.askAlone(String(index), signal);
      if (answer === 'none') return;
      unanswered = answer === 'rows' ? 0 : unanswered + 1;
    }
  }

  async #doesAnswer(id: string, signal: AbortSignal): Promise<boolean> {
    return signal.aborted || (await this.askAlone(id, signal)) === 'rows';
  }

  async askAlone(id: string, signal: AbortSignal): Promise<'rows' | 'none' | 'trouble'> {
    try {
      const { rows, output } = await this.#o.smi.gpus(signal, { fields: this.#o.fields(), only: [id] });
      this.#o.onRows(rows);
      if (rows.length > 0) return 'rows';
      if (this.#o.takesNextRung(output)) return await this.askAlone(id, signal);
      this.hear(output.stdout + output.stderr);
      return healthOf(output).health === 'absent' ? 'none' : 'trouble';
    } catch {
      return 'trouble'; // in time there is no answer from it, or the sampler stops
    }
  }

  /** Takes lost GPUs from what nvidia-smi says between its rows, and instead of them. */
  hear(text: string): void {
    for (const loss of namedLosses(text)) {
      if (!this.#o.table.markNamed(loss)) continue;
      this.#o.log.error({ event: 'gpu-lost', ...loss });
      this.#o.onLost();
    }
  }

  #lose(uuid: string, said: string): void {
    const reason = said.split('\n')[0]?.trim() ?? '';
    if (this.#o.table.markLost(uuid, reason)) this.#o.log.error({ event: 'gpu-lost', uuid, said: reason });
  }
}
