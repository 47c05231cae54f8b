import { AppError } from '../../shared/errors.ts';
import type { NvidiaSmi } from './nvidia-smi.ts';
import { healthOf } from './smi-health.ts';
import type { ComputeApp, ListedDevice } from './smi-rows.ts';
import { parseDeviceList } from './smi-rows.ts';
import type { MigInstance } from './smi-xml.ts';
import { hasNamelessInstances, migInstances, parseSmiXml, xmlApps } from './smi-xml.ts';

/** Reads the instances of MIG GPUs: `--query-gpu` never lists them, and of their memory the XML alone tells. */
export class MigReader {
  readonly #smi: NvidiaSmi;
  /** UUIDs and profiles as last listed, for as long as the instances are the same. */
  #listed: { layout: string; devices: ListedDevice[] } = { layout: '', devices: [] };

  constructor(smi: NvidiaSmi) {
    this.#smi = smi;
  }

  /** Processes too, of all GPUs: only here those of an instance can be told from those of its neighbours. */
  async read(
    signal: AbortSignal,
    { only }: { only: readonly string[] | undefined },
  ): Promise<{ instances: MigInstance[]; apps: ComputeApp[] }> {
    const output = await this.#smi.run(['-q', '-x', ...(only === undefined ? [] : ['-i', only.join(',')])], signal);
    const log = parseSmiXml(output.stdout);
    if (log === undefined) {
      throw new AppError('GPU_LOST', `nvidia-smi -q -x cannot be read: ${healthOf(output).reason}.`);
    }
    const layout = JSON.stringify(
      log.nvidia_smi_log.gpu.map(({ uuid, mig_devices }) => [
        uuid,
        mig_devices.map((device) => [device.index, device.gpu_instance_id, device.compute_instance_id]),
      ]),
    );
    if (layout !== this.#listed.layout) {
      const list = await this.#smi.run(['-L'], signal);
      const devices = parseDeviceList(list.stdout);
      // A list without them, of a moment in which they changed, is asked for again the next time.
      const isUsable = devices.some(({ mig }) => mig !== undefined) || !hasNamelessInstances(log);
      this.#listed = { layout: isUsable ? layout : '', devices };
    }
    return { instances: migInstances(log, this.#listed.devices), apps: xmlApps(log, this.#listed.devices) };
  }
}
