import { Options } from './options.ts';
import { type Behaviour, behaviourOf, COMMON_FLAGS, COMMON_VALUES } from './server-options.ts';

export const STEP1X_FLAGS = [
  'broken-head',
  'async-health',
  'no-prompt-header',
  'missing-weights',
  'mcp',
  'stray-prints',
];
export const STEP1X_VALUES = ['server', 'offload', 'release', 'idle-timeout-ms'];

/** Step1X-Edit takes its port from the environment; all flags are the simulator's own. */
export type Step1xOptions = Behaviour & {
  server: 'unified' | 'api';
  host: string;
  port: number;
  ledgerDir: string | undefined;
  isBrokenHead: boolean;
  lacksWeights: boolean;
  /** A no-op says "CPU" and frees nothing; a lazy release frees with the next call. */
  offload: 'noop' | 'real';
  release: 'lazy' | 'real';
  answersDuringEdits: boolean;
  hasPromptHeader: boolean;
  idleTimeoutMs: number;
  /** Serves MCP on its standard streams instead of HTTP. */
  isMcp: boolean;
  hasStrayPrints: boolean;
};

export function step1xOptions(argv: string[], environment: NodeJS.ProcessEnv): Step1xOptions {
  const options: Options = new Options('step1x-edit', argv, {
    flags: [...COMMON_FLAGS, ...STEP1X_FLAGS],
    values: [...COMMON_VALUES, ...STEP1X_VALUES],
  });
  const server = options.choice('server', ['unified', 'api']) ?? 'unified';
  // The two programs read their port from different variables.
  const port = environment[server === 'api' ? 'API_PORT' : 'PORT'] ?? environment['PORT'] ?? '8000';
  return {
    ...behaviourOf(options, {
      weightsMiB: 40_960,
      residualMiB: 600,
      hasWorker: false,
      outlivesParent: false,
      killsInTheEnd: false,
    }),
    server,
    host: environment['HOST'] ?? '0.0.0.0',
    port: Number(port),
    ledgerDir: options.text('ledger') ?? environment['GANTRY_SIM_LEDGER'],
    isBrokenHead: options.has('broken-head'),
    lacksWeights: options.has('missing-weights'),
    offload: options.choice('offload', ['noop', 'real']) ?? 'real',
    release: options.choice('release', ['lazy', 'real']) ?? 'real',
    answersDuringEdits: options.has('async-health'),
    hasPromptHeader: !options.has('no-prompt-header'),
    idleTimeoutMs: options.integer('idle-timeout-ms') ?? Number(environment['GPU_IDLE_TIMEOUT'] ?? '60') * 1000,
    isMcp: options.has('mcp'),
    hasStrayPrints: options.has('stray-prints'),
  };
}
