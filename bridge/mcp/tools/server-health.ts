import { z } from 'zod';
import type { ModelStatus } from '../../../shared/host-snapshot.ts';
import type { HostView } from '../../fleet/host-view.ts';
import { host } from '../arguments.ts';
import { linkProblem, namedHosts } from '../hosts.ts';
import { defineTool, READS } from '../tool.ts';

const HealthJson = z.object({
  host: z.string(),
  server_url: z.string(),
  status: z.string(),
  problem: z.string().optional(),
  latency_ms: z.number().optional(),
  version: z.string().optional(),
  driver: z.string().optional(),
  servers: z.array(
    z.object({
      model: z.string(),
      engine: z.string(),
      status: z.string(),
      state: z.string(),
      model_loaded: z.boolean(),
      version: z.string().optional(),
      problem: z.string().optional(),
    }),
  ),
});

const output = z.object({ status: z.string(), hosts: z.array(HealthJson) });

export const serverHealth = defineTool({
  name: 'server_health',
  title: 'Health of hosts and model servers',
  description: 'Whether each host and model server works, and if not why. Use it first when something fails.',
  annotations: READS,
  input: z.strictObject({ host }),
  output,
  run: async (args, context) => {
    const fleet = await context.fleet();
    return { status: 'success', hosts: namedHosts(fleet.hosts(), args.host).map(healthJson) };
  },
});

function healthJson(view: HostView): z.input<typeof HealthJson> {
  const { link, snapshot } = view;
  const isUp = link.kind === 'up' && snapshot !== undefined;
  const servers = isUp ? snapshot.models.map(serverJson) : [];
  const isIll =
    (snapshot?.problems.length ?? 0) > 0 ||
    servers.some(({ status }) => status === 'failed') ||
    snapshot?.gpus.some(({ health }) => health === 'lost');
  return {
    host: view.name,
    server_url: view.url,
    status: isUp ? (isIll ? 'degraded' : 'healthy') : link.kind === 'down' ? 'unreachable' : 'connecting',
    ...((!isUp || snapshot.problems.length > 0) && { problem: linkProblem(view) }),
    ...(link.kind === 'up' && { latency_ms: Math.round(link.latencyMs * 10) / 10 }),
    ...(snapshot !== undefined && { version: snapshot.agentVersion, driver: snapshot.driver ?? undefined }),
    servers,
  };
}

function serverJson(model: ModelStatus): z.input<typeof HealthJson>['servers'][number] {
  const isFailed = model.state === 'failed';
  return {
    model: model.model,
    engine: model.engine,
    status: isFailed
      ? 'failed'
      : model.state === 'ready'
        ? 'healthy'
        : model.state === 'released'
          ? 'stopped'
          : model.state,
    state: model.state,
    model_loaded: model.state === 'ready',
    version: model.version,
    ...(isFailed && { problem: model.detail ?? 'It failed without a reason; see the log of the agent.' }),
  };
}
