import type { Ledger, LedgerGpu } from './ledger.ts';
import {
  appRows,
  busId,
  DRIVER_VERSION,
  type GpuRow,
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
			<current_mig>N/A</current_mig>
			<pending_mig>N/A</pending_mig>
		</mig_mode>
		<mig_devices>
			None
		</mig_devices>
		<uuid>${escaped(gpu.uuid)}</uuid>
		<minor_number>${gpu.index}</minor_number>
		<pci>
			<pci_bus>${busId(gpu).slice(9, 11)}</pci_bus>
			<pci_bus_id>${busId(gpu)}</pci_bus_id>
		</pci>
		<performance_state>${pstate(row)}</performance_state>
		<fb_memory_usage>
			<total>${gpu.totalMiB} MiB</total>
			<reserved>${row.reservedMiB} MiB</reserved>
			<used>${row.usedMiB} MiB</used>
			<free>${row.freeMiB} MiB</free>
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
    ({ entry }) => `			<process_info>
				<gpu_instance_id>N/A</gpu_instance_id>
				<compute_instance_id>N/A</compute_instance_id>
				<pid>${entry.pid}</pid>
				<type>C</type>
				<process_name>${escaped(entry.name)}</process_name>
				<used_memory>${entry.usedMiB} MiB</used_memory>
			</process_info>
`,
  )
  .join('')}		</processes>
	</gpu>
`;
}

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}
