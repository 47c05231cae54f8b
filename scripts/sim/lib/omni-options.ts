import { REAL_FLAGS, REAL_VALUES, SIM_FLAGS, SIM_VALUES } from './omni-command-line.ts';
import { Options } from './options.ts';
import { type Behaviour, behaviourOf, COMMON_FLAGS, COMMON_VALUES } from './server-options.ts';

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
  /** A running generation ends at the next step when its client leaves. */
  stopsAtSteps: boolean;
  vllmVersion: string;
  hangsAfterStartup: boolean;
  runsOutOfMemoryAtLoad: boolean;
  leaksSibling: boolean;
  /** What /health does once `healthFrom` images are made. */
  health: '200' | '503' | 'hang';
  healthFrom: number;
  healthBody: 'json' | 'empty';
  metricsPrefix: 'vllm_omni' | 'vllm:omni' | 'none';
  countsWaitingAsRunning: boolean;
  acceptsAnyModel: boolean;
  sizeField: 'echo' | 'real';
  forcedSize: { width: number; height: number } | undefined;
  /** Every picture is this file. */
  answerFile: string | undefined;
  responseShape: 'new' | 'no-metrics' | 'minimal';
  hangsOnSeveral: boolean;
  editsFirstImageOnly: boolean;
  isMultiStage: boolean;
  oom: 'exception' | 'engine-output' | 'hang' | 'die';
  oomAt: number | undefined;
  neverAnswer: number | undefined;
  poisonsAfterAbort: boolean;
  workerDiesAt: number | undefined;
  sleepMs: number;
  sleepCrashes: boolean;
  freeOnlyMiB: number | undefined;
  sleepAckError: boolean;
  wakeAckError: boolean;
  wakeRunsOutOfMemory: boolean;
  level2Wake: '500' | 'garbage';
  asleep: '500' | 'hang' | 'die';
};

export function omniOptions(argv: string[], environment: NodeJS.ProcessEnv): OmniOptions {
  // The type is spelled out because only then TypeScript believes that usage() never returns.
  const options: Options = new Options('vllm serve', argv, {
    flags: [...REAL_FLAGS, ...COMMON_FLAGS, ...SIM_FLAGS],
    values: [...REAL_VALUES, ...COMMON_VALUES, ...SIM_VALUES],
  });
  rejectFlag(options);
  // --served-model-name takes several names; the parser leaves all but the first among the positional words.
  const [command, model, ...moreNames] = options.positionals;
  if (command !== 'serve') options.usage(`argument subparser: invalid choice: '${command}' (choose from 'serve')`);
  if (model === undefined) options.usage('--omni needs a model: vllm serve MODEL --omni');
  const oom = options.choice('oom', ['exception', 'engine-output', 'hang', 'die']);
  const vllmVersion = options.text('vllm-version') ?? '0.28.0';
  return {
    ...behaviourOf(options, {
      weightsMiB: 8_192,
      residualMiB: 1_536,
      hasWorker: options.has('leak-sibling') || options.text('worker-dies-at') !== undefined,
      outlivesParent: options.has('leak-sibling'),
      killsInTheEnd: minorOf(vllmVersion) >= 29, // #7126
    }),
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
    stopsAtSteps: options.has('step-execution'),
    vllmVersion,
    hangsAfterStartup: options.has('hang-after-startup'),
    runsOutOfMemoryAtLoad: options.has('oom-at-load'),
    leaksSibling: options.has('leak-sibling'),
    health: options.choice('health', ['200', '503', 'hang']) ?? '200',
    healthFrom: options.integer('health-from') ?? 0,
    healthBody: options.choice('health-body', ['json', 'empty']) ?? 'json',
    metricsPrefix: options.choice('metrics-prefix', ['vllm_omni', 'vllm:omni', 'none']) ?? 'vllm_omni',
    countsWaitingAsRunning: options.has('metrics-waiting-zero'),
    acceptsAnyModel: options.has('accept-any-model'),
    sizeField: options.choice('size-field', ['echo', 'real']) ?? 'echo',
    forcedSize: forcedSize(options),
    answerFile: options.text('answer-file'),
    responseShape: options.choice('response-shape', ['new', 'no-metrics', 'minimal']) ?? 'new',
    hangsOnSeveral: options.has('hang-on-n'),
    editsFirstImageOnly: options.has('first-image-only'),
    isMultiStage: options.has('multi-stage'),
    oom: oom ?? 'exception',
    oomAt: options.integer('oom-at') ?? (oom === undefined ? undefined : 1),
    neverAnswer: options.integer('never-answer'),
    poisonsAfterAbort: options.has('poison-after-abort'),
    workerDiesAt: options.integer('worker-dies-at'),
    sleepMs: options.integer('sleep-ms') ?? 100,
    sleepCrashes: options.has('sleep-crash'),
    freeOnlyMiB: options.integer('free-only-mib'),
    sleepAckError: options.has('sleep-ack-error'),
    wakeAckError: options.has('wake-ack-error'),
    wakeRunsOutOfMemory: options.has('wake-oom'),
    level2Wake: options.choice('level2-wake', ['500', 'garbage']) ?? '500',
    asleep: options.choice('asleep', ['500', 'hang', 'die']) ?? 'hang',
  };
}

/** --reject-flag NAME: this version does not know that one yet, or no longer. */
function rejectFlag(options: Options): void {
  const name = options.text('reject-flag')?.replace(/^--/, '');
  if (name === undefined) return;
  if (![...REAL_FLAGS, ...REAL_VALUES].includes(name))
    options.usage(`argument --reject-flag: no flag is named ${name}`);
  if (options.isGiven(name)) options.usage(`unrecognized arguments: --${name}`);
}

/** As the real one: the product of the parallel sizes, unless it is told. */
function gpuCount(options: Options): number {
  const sizes = ['tensor-parallel-size', 'usp', 'ulysses-degree', 'ring', 'cfg-parallel-size'];
  const product = sizes.reduce((count, name) => count * (options.integer(name) ?? 1), 1);
  return options.integer('num-gpus') ?? product;
}

function forcedSize(options: Options): OmniOptions['forcedSize'] {
  const text = options.text('force-size');
  if (text === undefined) return undefined;
  const [, width, height] = /^(\d+)x(\d+)$/.exec(text) ?? options.usage(`argument --force-size: not WxH: '${text}'`);
  return { width: Number(width), height: Number(height) };
}

function minorOf(version: string): number {
  return Number(version.split('.')[1] ?? 0);
}
