import { z } from 'zod';
import type { HostView } from '../../fleet/host-view.ts';
import { linkProblem, namedHosts } from '../hosts.ts';
import { defineTool, READS } from '../tool.ts';
import { gb, knownGb, seconds } from '../units.ts';

const HostJson = z.object({
  host: z.string(),
  address: z.string(),
  link: z.string(),
  problem: z.string().optional(),
  retry_in_seconds: z.number().optional(),
  latency_ms: z.number().optional(),
  agent_version: z.string().optional(),
  is_simulated: z.boolean().optional(),
  is_draining: z.boolean().optional(),
  gpus: z.array(
    z.object({ gpu_name: z.string(), total_vram_gb: z.number().optional(), free_vram_gb: z.number().optional() }),
  ),
  models: z.array(
    z.object({
      model: z.string(),
      alias: z.string(),
      state: z.string(),
      slots: z.array(z.object({ phase: z.string(), free_in_seconds: z.number(), reason: z.string().optional() })),
    }),
  ),
  offered_work: z.array(z.object({ model: z.string(), class: z.string(), count: z.int(), work_seconds: z.number() })),
  host_ram_free_gb: z.number().optional(),
  disk_free_gb: z.number().optional(),
});

const output = z.object({ status: z.string(), hosts: z.array(HostJson) });

export const listHosts = defineTool({
  name: 'list_hosts',
  title: 'List GPU hosts',
  description: 'Every configured host: address, link and its problem, GPUs, models with their slots, offered work.',
  annotations: READS,
  input: z.strictObject({}),
  output,
  run: async (_, context) => {
    const fleet = await context.fleet();
    return { status: 'success', hosts: namedHosts(fleet.hosts(), undefined).map(hostJson) };
  },
});

function hostJson(host: HostView): z.input<typeof HostJson> {
  const { link, snapshot } = host;
  return {
    host: host.name,
    address: host.url,
    link: link.kind,
    ...(link.kind === 'up' && { latency_ms: Math.round(link.latencyMs * 10) / 10 }),
    ...((link.kind !== 'up' || (snapshot?.problems.length ?? 0) > 0) && { problem: linkProblem(host) }),
    ...(link.kind === 'down' && { retry_in_seconds: seconds(link.retryInMs) }),
    ...(snapshot !== undefined && {
      agent_version: snapshot.agentVersion,
      is_simulated: snapshot.isSimulated,
      is_draining: snapshot.isDraining,
      host_ram_free_gb: gb(snapshot.memory.freeMiB),
      disk_free_gb: knownGb(snapshot.disk.freeMiB),
    }),
    gpus: (snapshot?.gpus ?? []).map((gpu) => ({
      gpu_name: gpu.name,
      total_vram_gb: knownGb(gpu.totalMiB),
      free_vram_gb: knownGb(gpu.freeMiB),
    })),
    models: (snapshot?.models ?? []).map((model) => ({
      model: model.model,
      alias: model.alias,
      state: model.state,
      slots: model.slots.map(({ phase, freeInMs, reason }) => ({
        phase,
        free_in_seconds: seconds(freeInMs),
        ...(reason !== undefined && { reason }),
      })),
    })),
    offered_work: (snapshot?.offered ?? []).map((work) => ({
      model: work.model,
      class: work.class,
      count: work.count,
      work_seconds: seconds(work.workMs),
    })),
  };
}
