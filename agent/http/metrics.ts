import type { ServerResponse } from 'node:http';
import type { Registry } from 'prom-client';
import type { HostSnapshot } from '../../shared/host-snapshot.ts';
import type { JobTally } from '../job/job-tally.ts';

export type EvictionCount = { model: string; by: 'offload' | 'release'; count: number };

/** What is counted and what is measured, as of now. */
export type MetricFacts = {
  snapshot: HostSnapshot;
  jobs: JobTally['models'];
  evictions: readonly EvictionCount[];
  isReady: boolean;
  links: number;
};

const MIB = 1024 ** 2;
const HEALTHY = 'ok';

/**
 * What Prometheus reads: GPUs, models, jobs. Labels are GPUs, models, states and error codes of this host, so their number is
 * bounded by its configuration; no prompt, token, job or path is in them. The library is loaded at the first scrape: most
 * agents are never scraped, and pay nothing.
 */
export async function sendMetrics(response: ServerResponse, facts: () => MetricFacts): Promise<void> {
  const { Registry, Gauge, Counter } = await import('prom-client');
  const registry = new Registry();
  const add = (kind: typeof Gauge | typeof Counter) => (name: string, help: string, samples: readonly Sample[]) => {
    if (samples.every(([, value]) => value === null)) return; // without labels it would be 0, and that is a value
    const labelNames = Object.keys(samples[0]?.[0] ?? {});
    const metric = new kind({ name, help, labelNames, registers: [registry] });
    for (const [labels, value] of samples) if (value !== null) metric.inc(labels, value);
  };
  write(facts(), { gauge: add(Gauge), counter: add(Counter) });
  await send(response, registry);
}

type Sample = [labels: Record<string, string>, value: number | null];
type Add = (name: string, help: string, samples: readonly Sample[]) => void;

/** The values are those of this moment, so each scrape fills a registry of its own. */
function write(facts: MetricFacts, add: { gauge: Add; counter: Add }): void {
  const { snapshot, isReady, links } = facts;
  const { agentVersion, isDraining, disk, memory } = snapshot;
  add.gauge('gantry_agent_info', 'Release of the agent; always 1', [[{ version: agentVersion }, 1]]);
  add.gauge('gantry_ready', '1 where jobs would be granted, as /readyz says', [[{}, isReady ? 1 : 0]]);
  add.gauge('gantry_draining', '1 while the host takes no new work', [[{}, isDraining ? 1 : 0]]);
  add.gauge('gantry_problems', 'Things in the way of work; `status` has them in words', [
    [{}, snapshot.problems.length],
  ]);
  add.gauge('gantry_links', 'Bridges that are connected', [[{}, links]]);
  add.gauge('gantry_disk_free_bytes', 'Room where results are kept', [[{}, bytes(disk.freeMiB)]]);
  add.gauge('gantry_host_memory_free_bytes', 'Host RAM that is available', [[{}, bytes(memory.freeMiB)]]);
  writeGpus(snapshot, add);
  writeModels(snapshot, add);
  writeJobs(facts, add);
}

function writeGpus({ gpus }: HostSnapshot, add: { gauge: Add }): void {
  type Gpu = HostSnapshot['gpus'][number];
  const each = (name: string, help: string, value: (gpu: Gpu) => number | null): void =>
    add.gauge(
      `gantry_gpu_${name}`,
      help,
      gpus.map((gpu) => [{ gpu: String(gpu.index), uuid: gpu.uuid }, value(gpu)]),
    );
  each('healthy', '1 where nvidia-smi reports it and its memory came back', ({ health, isDegraded }) =>
    health === HEALTHY && !isDegraded ? 1 : 0,
  );
  each('memory_total_bytes', 'VRAM', ({ totalMiB }) => bytes(totalMiB));
  each('memory_used_bytes', 'VRAM in use, by nvidia-smi', ({ usedMiB }) => bytes(usedMiB));
  each('memory_ours_bytes', 'VRAM that model servers of gantry hold', ({ oursMiB }) => bytes(oursMiB));
  each('memory_foreign_bytes', 'VRAM that other programs hold', ({ foreign }) =>
    bytes(foreign.reduce((sum, { usedMiB }) => sum + usedMiB, 0)),
  );
  each('utilisation_ratio', 'Busy time of the GPU, 0 to 1', ({ utilisationPercent: percent }) =>
    percent === null ? null : percent / 100,
  );
  each('temperature_celsius', 'Temperature', ({ temperatureC }) => temperatureC);
  each('power_watts', 'Power draw', ({ powerW }) => powerW);
}

function writeModels({ models, offered }: HostSnapshot, add: { gauge: Add; counter: Add }): void {
  const each = (name: string, help: string, value: (model: HostSnapshot['models'][number]) => number) =>
    [name, help, models.map((model): Sample => [{ model: model.alias }, value(model)])] as const;
  add.gauge(
    'gantry_model_state',
    'The state that a model is in; always 1',
    models.map(({ alias, state }) => [{ model: alias, state }, 1]),
  );
  add.gauge(...each('gantry_model_memory_bytes', 'VRAM that its server holds', ({ heldMiB }) => heldMiB * MIB));
  add.gauge(
    ...each(
      'gantry_model_jobs_running',
      'Jobs that run',
      ({ slots }) => slots.filter(({ phase }) => phase === 'running').length,
    ),
  );
  add.counter(...each('gantry_model_loads_total', 'Times it was loaded', ({ loads }) => loads));
  add.counter(...each('gantry_model_wakes_total', 'Times it came back from host RAM', ({ wakes }) => wakes ?? 0));
  add.counter(...each('gantry_model_offloads_total', 'Times it was moved to host RAM', ({ offloads }) => offloads));
  add.counter(...each('gantry_model_releases_total', 'Times its server ended', ({ releases }) => releases));
  const aliasOf = (id: string): string => models.find(({ model }) => model === id)?.alias ?? 'other';
  add.gauge(
    'gantry_offered_jobs',
    'Jobs that bridges offer for it',
    offered.map(({ model, class: kind, count }) => [{ model: aliasOf(model), class: kind }, count]),
  );
}

function writeJobs({ jobs, evictions, snapshot }: MetricFacts, add: { counter: Add }): void {
  const aliasOf = (id: string): string => snapshot.models.find(({ model }) => model === id)?.alias ?? 'other';
  const all = [...jobs].map(([id, counts]) => ({ model: aliasOf(id), ...counts }));
  add.counter(
    'gantry_jobs_total',
    'Jobs that ended, by how',
    all.flatMap(({ model, done, cancelled, failed }): Sample[] => [
      [{ model, outcome: 'done' }, done],
      [{ model, outcome: 'cancelled' }, cancelled],
      [{ model, outcome: 'failed' }, [...failed.values()].reduce((sum, count) => sum + count, 0)],
    ]),
  );
  add.counter(
    'gantry_job_errors_total',
    'Jobs that failed, by the code of the error',
    all.flatMap(({ model, failed }) => [...failed].map(([code, count]): Sample => [{ model, code }, count])),
  );
  add.counter(
    'gantry_job_run_seconds_total',
    'Time that engines worked on jobs that are done',
    all.map(({ model, runMs }) => [{ model }, runMs / 1_000]),
  );
  add.counter(
    'gantry_evictions_total',
    'Times an idle model had to make room for another',
    evictions.map(({ model, by, count }) => [{ model, by }, count]),
  );
}

async function send(response: ServerResponse, registry: Registry): Promise<void> {
  const text = await registry.metrics();
  response.writeHead(200, { 'content-type': registry.contentType });
  response.end(text);
}

function bytes(mib: number | null): number | null {
  return mib === null ? null : mib * MIB;
}
