import type { Ledger, LedgerGpu, LedgerInstance } from './ledger.ts';
import {
  appRows,
  busId,
  DRIVER_VERSION,
  type GpuRow,
  gpuRow,
  gpuRows,
  power,
  pstate,
  temperature,
  utilisation,
} from './smi-csv.ts';

/** The answer to `nvidia-smi -q -x`: the sections that an inventory reads, in the real order and spelling. */
export function inventoryXml(ledger: Ledger, gpus: LedgerGpu[]): string {
  const rows = gpuRows(ledger, gpus);
  return `<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
	<timestamp>${new Date().toUTCString()}</timestamp>
	<driver_version>${DRIVER_VERSION}</driver_version>
	<cuda_version>13.0</cuda_version>
	<attached_gpus>${rows.length}</attached_gpus>
${rows.map((row) => gpuXml(ledger, row)).join('')}</nvidia_smi_log>
`;
}

function gpuXml(ledger: Ledger, row: GpuRow): string {
  const { gpu } = row;
  return `	<gpu id="${busId(gpu)}">
		<product_name>${escaped(gpu.name)}</product_name>
		<product_brand>Simulated</product_brand>
		<persistence_mode>Enabled</persistence_mode>
		<mig_mode>
			<current_mig>${gpu.mig === undefined ? 'N/A' : 'Enabled'}</current_mig>
			<pending_mig>${gpu.mig === undefined ? 'N/A' : 'Enabled'}</pending_mig>
		</mig_mode>
		<mig_devices>
${gpu.mig?.map((instance) => instanceXml(ledger, instance)).join('') ?? '\t\t\tNone\n'}		</mig_devices>
		<uuid>${escaped(gpu.uuid)}</uuid>
		<minor_number>${gpu.index}</minor_number>
		<pci>
			<pci_bus>${busId(gpu).slice(9, 11)}</pci_bus>
			<pci_bus_id>${busId(gpu)}</pci_bus_id>
		</pci>
		<performance_state>${pstate(row)}</performance_state>
		<fb_memory_usage>
			<total>${shown(row, gpu.totalMiB)}</total>
			<reserved>${shown(row, row.reservedMiB)}</reserved>
			<used>${shown(row, row.usedMiB)}</used>
			<free>${shown(row, row.freeMiB)}</free>
		</fb_memory_usage>
		<compute_mode>Default</compute_mode>
		<utilization>
			<gpu_util>${utilisation(row)} %</gpu_util>
			<memory_util>${utilisation(row)} %</memory_util>
		</utilization>
		<temperature>
			<gpu_temp>${temperature(row)} C</gpu_temp>
		</temperature>
		<gpu_power_readings>
			<power_state>${pstate(row)}</power_state>
			<instant_power_draw>${power(row)} W</instant_power_draw>
		</gpu_power_readings>
		<processes>
${appRows(ledger, [gpu])
  .map(
    ({ instance, pid, name, usedMiB }) => `			<process_info>
				<gpu_instance_id>${instance?.gpuInstance ?? 'N/A'}</gpu_instance_id>
				<compute_instance_id>${instance?.computeInstance ?? 'N/A'}</compute_instance_id>
				<pid>${pid}</pid>
				<type>C</type>
				<process_name>${escaped(name)}</process_name>
				<used_memory>${usedMiB === '[N/A]' ? 'N/A' : `${usedMiB} MiB`}</used_memory>
			</process_info>
`,
  )
  .join('')}		</processes>
	</gpu>
`;
}

/** Without the UUID, as most drivers: that is in `nvidia-smi -L` only. */
function instanceXml(ledger: Ledger, { index, gpuInstance, computeInstance, ...instance }: LedgerInstance): string {
  const row = gpuRow(ledger, { ...instance, index, name: instance.profile, reservedMiB: 0 });
  return `			<mig_device>
				<index>${index}</index>
				<gpu_instance_id>${gpuInstance}</gpu_instance_id>
				<compute_instance_id>${computeInstance}</compute_instance_id>
				<fb_memory_usage>
					<total>${instance.totalMiB} MiB</total>
					<reserved>0 MiB</reserved>
					<used>${row.usedMiB} MiB</used>
					<free>${row.freeMiB} MiB</free>
				</fb_memory_usage>
			</mig_device>
`;
}

function shown({ gpu }: GpuRow, mib: number): string {
  return gpu.isUnified === true || gpu.mig !== undefined ? 'N/A' : `${mib} MiB`;
}

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}
