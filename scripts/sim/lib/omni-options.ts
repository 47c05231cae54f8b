import { Options } from './options.ts';
import { type Behaviour, behaviourOf, COMMON_FLAGS, COMMON_VALUES } from './server-options.ts';

/** The real server's options that take no value. What they mean is ignored but for those read below. */
const REAL_FLAGS = [
  'omni',
  'enable-sleep-mode',
  'log-stats',
  'disable-log-stats',
  'vae-use-tiling',
  'vae-use-slicing',
  'enforce-eager',
  'enable-cpu-offload',
  'enable-layerwise-offload',
  'enable-distributed-layerwise-offload',
  'enable-diffusion-pipeline-profiler',
  'disable-multithread-weight-load',
  'disable-uvicorn-access-log',
  'step-execution',
  'trust-remote-code',
  'use-hsdp',
];
const REAL_VALUES = [
  'host',
  'port',
  'served-model-name',
  'api-key',
  'revision',
  'dtype',
  'num-gpus',
  'tensor-parallel-size',
  'usp',
  'ulysses-degree',
  'ring',
  'cfg-parallel-size',
  'vae-patch-parallel-size',
  'text-encoder-tp-size',
  'hsdp-shard-size',
  'max-num-seqs',
  'request-batch-max-wait-ms',
  'quantization',
  'diffusion-quantization-config',
  'cache-backend',
  'cache-config',
  'diffusion-offload-config',
  'gpu-memory-utilization',
  'stage-init-timeout',
  'init-timeout',
  'default-sampling-params',
  'max-generated-image-size',
  'diffusion-attention-backend',
  'diffusion-load-format',
  'deploy-config',
  'stage-overrides',
  'stage-0-devices',
  'stage-1-devices',
  'num-weight-load-threads',
  'uvicorn-log-level',
  'log-file',
  'download-dir',
  'seed',
];
const SIM_FLAGS = ['oom-at-load', 'hang-after-startup', 'no-logs', 'no-progress-bar', 'wake-oom', 'sleep-ack-error'];
const SIM_VALUES = ['oom', 'oom-at', 'never-answer', 'free-only-mib', 'asleep', 'vllm-version', 'sleep-ms'];

/** The command line of one simulated vLLM-Omni, read once. */
export type OmniOptions = Behaviour & {
  model: string;
  /** Only the first one is accepted in requests. */
  servedNames: string[];
  host: string;
  port: number;
  apiKey: string | undefined;
  gpuCount: number;
  ledgerDir: string | undefined;
  maxPixels: number;
  hasSleepMode: boolean;
  hasStats: boolean;
  hasLogs: boolean;
  hasProgressBar: boolean;
  hasAccessLog: boolean;
  vllmVersion: string;
  hangsAfterStartup: boolean;
  runsOutOfMemoryAtLoad: boolean;
  oom: 'exception' | 'engine-output' | 'die';
  oomAt: number | undefined;
  neverAnswer: number | undefined;
  sleepMs: number;
  freeOnlyMiB: number | undefined;
  sleepAckError: boolean;
  wakeRunsOutOfMemory: boolean;
  asleep: '500' | 'hang' | 'die';
};

export function omniOptions(argv: string[], environment: NodeJS.ProcessEnv): OmniOptions {
  // The type is spelled out because only then TypeScript believes that usage() never returns.
  const options: Options = new Options('vllm serve', argv, {
    flags: [...REAL_FLAGS, ...COMMON_FLAGS, ...SIM_FLAGS],
    values: [...REAL_VALUES, ...COMMON_VALUES, ...SIM_VALUES],
  });
  // --served-model-name takes several names; the parser leaves all but the first among the positional words.
  const [command, model, ...moreNames] = options.positionals;
  if (command !== 'serve') options.usage(`argument subparser: invalid choice: '${command}' (choose from 'serve')`);
  if (model === undefined) options.usage('--omni needs a model: vllm serve MODEL --omni');
  const oom = options.choice('oom', ['exception', 'engine-output', 'die']);
  return {
    ...behaviourOf(options, { weightsMiB: 8_192, residualMiB: 1_536 }),
    model,
    servedNames: [options.text('served-model-name') ?? model, ...moreNames],
    host: options.text('host') ?? '0.0.0.0',
    port: options.integer('port') ?? 8000,
    apiKey: options.text('api-key') ?? environment['VLLM_API_KEY'],
    gpuCount: gpuCount(options),
    ledgerDir: options.text('ledger') ?? environment['GANTRY_SIM_LEDGER'],
    maxPixels: options.integer('max-generated-image-size') ?? 7680 * 4320,
    hasSleepMode: options.has('enable-sleep-mode'),
    hasStats: options.has('log-stats'),
    hasLogs: !options.has('no-logs'),
    hasProgressBar: !options.has('no-progress-bar'),
    hasAccessLog: !options.has('disable-uvicorn-access-log'),
    vllmVersion: options.text('vllm-version') ?? '0.28.0',
    hangsAfterStartup: options.has('hang-after-startup'),
    runsOutOfMemoryAtLoad: options.has('oom-at-load'),
    oom: oom ?? 'exception',
    oomAt: options.integer('oom-at') ?? (oom === undefined ? undefined : 1),
    neverAnswer: options.integer('never-answer'),
    sleepMs: options.integer('sleep-ms') ?? 100,
    freeOnlyMiB: options.integer('free-only-mib'),
    sleepAckError: options.has('sleep-ack-error'),
    wakeRunsOutOfMemory: options.has('wake-oom'),
    asleep: options.choice('asleep', ['500', 'hang', 'die']) ?? 'hang',
  };
}

/** As the real one: the product of the parallel sizes, unless it is told. */
function gpuCount(options: Options): number {
  const sizes = ['tensor-parallel-size', 'usp', 'ulysses-degree', 'ring', 'cfg-parallel-size'];
  const product = sizes.reduce((count, name) => count * (options.integer(name) ?? 1), 1);
  return options.integer('num-gpus') ?? product;
}
