import { z } from 'zod';
import { host } from '../arguments.ts';
import { linkProblem, namedHosts } from '../hosts.ts';
import { HostGpuJson, hostGpuJson } from '../status-json.ts';
import { defineTool, READS } from '../tool.ts';

const output = z.object({
  status: z.string(),
  hosts: z.array(HostGpuJson),
  recommended_max_concurrent: z.int(),
});

export const gpuStatus = defineTool({
  name: 'gpu_status',
  title: 'GPU status',
  description:
    'VRAM of every GPU by nvidia-smi (free, ours, of others), load, and which model is on it, in host RAM or ' +
    'unloaded.',
  annotations: READS,
  input: z.strictObject({ host }),
  output,
  run: async (args, context) => {
    const fleet = await context.fleet();
    const hosts = namedHosts(fleet.hosts(), args.host).map((view) =>
      hostGpuJson(view, view.link.kind === 'up' ? undefined : linkProblem(view)),
    );
    return {
      status: 'success',
      hosts,
      recommended_max_concurrent: hosts.reduce((sum, each) => sum + each.recommended_max_concurrent, 0),
    };
  },
});
