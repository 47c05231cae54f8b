import { isIP } from 'node:net';
import { z } from 'zod';
import { reachOf } from '../shared/addresses.ts';
import { Duration, Size } from '../shared/config-file.ts';
import { Capability, ModelProfile } from '../shared/model-profile.ts';

const ENGINES = ['vllm-omni', 'step1x-edit'] as const;
const Alias = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, {
  error: 'a model name has letters, digits, dots, dashes and underscores, at most 64',
});
const EnvValue = z.union([z.string(), z.number(), z.boolean()]).transform(String);
const Argv = z.array(z.string().min(1));
const OWNED_ONLY = ['command', 'args', 'cwd', 'env', 'download', 'replicas', 'preload'] as const;
const ATTACHED_ONLY = ['start', 'stop'] as const;

const profile = ModelProfile.shape;

/** Overrides of the shipped profile, under the names of shared/model-profile.ts. */
const ProfileOverrides = z
  .strictObject({
    type: profile.type.describe('Few steps without guidance (distilled), or many with it (standard)'),
    capabilities: profile.capabilities.describe('What it can do: generate, edit, or both'),
    steps: profile.steps.describe('Steps when the caller does not say'),
    maxSteps: profile.maxSteps.describe('More steps than this are refused'),
    guidance: z.strictObject({
      field: profile.guidance.shape.field.describe('What the engine calls guidance'),
      value: profile.guidance.shape.value.describe('Guidance when the caller does not say'),
    }),
    guidanceOff: profile.guidanceOff.describe('Value of that field that switches guidance off'),
    supportsNegativePrompt: profile.supportsNegativePrompt.describe('Whether a negative prompt has any effect'),
    width: profile.width.describe('Width in pixels when the caller does not say'),
    height: profile.height.describe('Height in pixels when the caller does not say'),
    multiple: profile.multiple.describe('Width and height must be multiples of so many pixels'),
    maxMegapixels: profile.maxMegapixels.describe('Larger images are refused'),
    aspectRatios: profile.aspectRatios.describe("Width and height for each aspect ratio, as in '16:9': [1664, 928]"),
    maxInputs: profile.maxInputs.describe('How many reference images an edit takes; 0 where it cannot edit'),
    hasSizeLevel: profile.hasSizeLevel.describe('Whether edits take a size level (512, 768, 1024) instead of a size'),
    weightsMiB: profile.weightsMiB.describe('VRAM of the weights in MiB, until measured; null where unknown'),
    peakMiB: profile.peakMiB.describe('Peak VRAM of 1 megapixel in MiB, until measured; null where unknown'),
    stepMs: profile.stepMs.describe('Time of one step at 1 megapixel in ms, until measured'),
  } satisfies Record<keyof Omit<ModelProfile, 'model' | 'sources'>, z.ZodType>)
  .partial();

/** One model of agent.yaml: a server that the agent starts, or with `attach` one that somebody else starts. */
export const ModelEntry = z
  .strictObject({
    engine: z.enum(ENGINES).describe('The server software'),
    model: z.string().min(1).max(150).optional().describe('Repository, or a path on this host'),
    revision: z
      .string()
      .regex(/^[\w.-]+$/)
      .max(64)
      .optional()
      .describe('Commit of the repository'),
    command: Argv.min(1).optional().describe('Program and first arguments; gantry adds its own flags behind them'),
    args: Argv.optional().describe('Further flags for the engine'),
    cwd: z.string().min(1).optional().describe('Working directory of the server'),
    env: z
      .record(z.string().min(1), EnvValue)
      .optional()
      .describe('Environment variables of the server, besides the few that every one gets'),
    attach: z
      .url({ protocol: /^https?$/, error: 'expected a URL like http://127.0.0.1:8000' })
      .optional()
      .describe('URL of a server that somebody else starts'),
    start: Argv.min(1).optional().describe('With attach: the program that starts that server, run without a shell'),
    stop: Argv.min(1).optional().describe('With attach: the program that stops that server, run without a shell'),
    download: z
      .union([z.literal('none'), Argv.min(1)])
      .optional()
      .describe(
        "Program that downloads the weights; default: `hf` beside the engine's program; none: the engine does it",
      ),
    warm_up: z.boolean().optional().describe('One small image after every load, before the model counts as ready'),
    capabilities: z.array(Capability).min(1).optional().describe('What it is used for, where not for all that it can'),
    gpus: z.int().min(1).max(64).optional().describe('How many GPUs one server spans'),
    replicas: z
      .union([z.int().min(1).max(64), z.literal('auto')])
      .optional()
      .describe('How many servers of it; auto: one for each GPU it fits on alone'),
    vram: Size.optional().describe('First guess of the VRAM it needs, until measured'),
    offload: z
      .enum(['auto', 'none'])
      .optional()
      .describe('auto: to host RAM where the engine can and the RAM suffices; none: it is released instead'),
    offload_after: Duration.optional().describe('Idle time after which the weights move to host RAM'),
    release_after: Duration.optional().describe('Idle time after which the server is ended'),
    preload: z.boolean().optional().describe('Loaded when the agent starts'),
    pin: z.boolean().optional().describe('Never evicted'),
    profile: ProfileOverrides.optional().describe('Overrides of the shipped profile'),
  })
  .superRefine((entry, context) => {
    if (entry.attach !== undefined) {
      for (const key of OWNED_ONLY.filter((name) => entry[name] !== undefined)) {
        context.addIssue({ code: 'custom', path: [key], message: 'not with attach: somebody else starts that server' });
      }
      if (entry.release_after !== undefined && entry.stop === undefined) {
        const message = 'with attach it needs `stop`, the program that stops that server';
        context.addIssue({ code: 'custom', path: ['release_after'], message });
      }
      return;
    }
    for (const key of ATTACHED_ONLY.filter((name) => entry[name] !== undefined)) {
      context.addIssue({
        code: 'custom',
        path: [key],
        message: 'only with attach: this server is started by its `command`',
      });
    }
    if (entry.model === undefined && entry.engine === 'vllm-omni') {
      context.addIssue({ code: 'custom', path: ['model'], message: 'missing: name a repository or a path' });
    }
  });
export type ModelEntry = z.output<typeof ModelEntry>;

const Times = z.strictObject({
  grant: Duration.prefault('5s').describe('A grant not taken by then goes back'),
  stop_grace: Duration.prefault('30s').describe('From SIGTERM to SIGKILL of a model server'),
  vram_back: Duration.prefault('15s').describe('How long the VRAM of an ended server may take to come back'),
  vram_back_offloaded: Duration.prefault('90s').describe('The same for one that had more than 16 GiB in host RAM'),
  start_deadline: Duration.prefault('15m').describe('How long a model server may take to get ready'),
  stall: Duration.prefault('5m').describe('A start without a log line or more VRAM for so long has failed'),
  job_floor: Duration.prefault('60s').describe(
    'Shortest time limit of a job; else 3 times what 95 of 100 like it took',
  ),
  job_limit: Duration.prefault('24h').describe('Longest time limit of a job, however long others like it took'),
  health_poll: Duration.prefault('1s').describe('How often a starting server is asked whether it is ready'),
  move_answer: Duration.prefault('40s').describe('Load, offload and release answer by then, finished or not'),
  input_silence: Duration.prefault('60s').describe('Missing inputs without a byte: INPUT_MISSING'),
  job_grace: Duration.prefault('30s').describe('What a running job gets at shutdown'),
  held_away: Duration.prefault('10m').describe('After offload or release by a person, batches leave the model away'),
  turn: Duration.prefault('30s').describe('Shortest turn of a model while others wait'),
  ping_every: Duration.prefault('15s').describe('Heartbeat on every link'),
  silence: Duration.prefault('45s').describe('A link without a frame for this long is ended'),
  undrained: Duration.prefault('30s').describe(
    'A link whose peer leaves more than 256 KiB unread for this long is ended',
  ),
  retry_first: Duration.prefault('2s').describe('First pause after a model server died; it doubles'),
});

/** agent.yaml, as written by a person. Every unknown key is an error. */
export const AgentFile = z
  .strictObject({
    listen: z.string().prefault('127.0.0.1:7801').transform(parseListen).describe('Address and port'),
    tls: z
      .enum(['on', 'off'])
      .optional()
      .describe('Default: on, but off on 127.0.0.1. off elsewhere: plain traffic, on private addresses only'),
    names: z.array(z.string().min(1)).default([]).describe('Further names by which this host is reached'),
    state_dir: z.string().min(1).default('/var/lib/gantry').describe('Tokens, results, journal, what was measured'),
    log_dir: z.string().min(1).optional().describe('Logs of the model servers; default: logs in state_dir'),
    log_level: z.enum(['debug', 'info', 'warn', 'error']).default('info').describe('What is logged, at least'),
    gpu: z
      .strictObject({
        reserve: Size.prefault('1GiB').describe('VRAM left free on every GPU'),
        sample_interval: Duration.prefault('1s').describe('How often nvidia-smi reports'),
        silence: Duration.prefault('10s').describe('nvidia-smi is restarted when it says nothing for this long'),
        query_timeout: Duration.prefault('3s').describe('A single question to nvidia-smi must be answered by then'),
        yield_to_foreign: z
          .boolean()
          .default(false)
          .describe('Idle models give their VRAM up when a program that is not ours needs it'),
        jobs_per_gpu: z
          .literal(1, { error: 'only 1 is possible: two jobs on one GPU slow each other down' })
          .default(1)
          .describe('Jobs that run on one GPU at the same time'),
        nvidia_smi: z
          .string()
          .min(1)
          .default('nvidia-smi')
          .describe('The program, by name or path; none: all models are on other machines, and no GPU is read here'),
      })
      .prefault({}),
    memory: z
      .strictObject({ reserve: Size.prefault('2GiB').describe('Host RAM that offloaded models leave free') })
      .prefault({}),
    logs: z
      .strictObject({
        max_size: Size.prefault('20MiB').describe('A log of a model server that grows beyond this is rotated'),
        keep: z.int().min(1).max(50).default(5).describe('Older parts kept of one log, and starts kept of one server'),
      })
      .prefault({}),
    models: z.record(Alias, ModelEntry).default({}),
    times: Times.prefault({}),
  })
  .superRefine((file, context) => {
    const owned = Object.entries(file.models).find(([, { attach }]) => attach === undefined);
    if (file.gpu.nvidia_smi === 'none' && owned !== undefined) {
      const message = `without it models.${owned[0]} cannot be started here; only \`attach\` works then`;
      context.addIssue({ code: 'custom', path: ['gpu', 'nvidia_smi'], message });
    }
    const problem = listenProblem(file.listen.host, file.tls);
    if (problem !== undefined) context.addIssue({ code: 'custom', path: ['listen'], message: problem });
  });
export type AgentFile = z.output<typeof AgentFile>;

function parseListen(text: string, context: z.RefinementCtx): { host: string; port: number } {
  const [, bracketed, plain, portText] = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text) ?? [];
  const named = bracketed ?? plain ?? '';
  const host = named === 'localhost' ? '127.0.0.1' : named;
  const port = Number(portText);
  if (isIP(host) !== 0 && port <= 65_535) return { host, port };
  context.addIssue({ code: 'custom', message: `${text} is not an address and port like 127.0.0.1:7801 or [::1]:7801` });
  return z.NEVER;
}

/** Why the agent must not listen there in clear text: tokens and prompts would cross the internet. */
function listenProblem(host: string, tls: 'on' | 'off' | undefined): string | undefined {
  if (tls !== 'off' || reachOf(host) !== 'public') return undefined;
  const all = host === '0.0.0.0' || host === '::' ? ' Name the private address of this machine instead.' : '';
  return `${host} is not a private address of this machine, and with \`tls: off\` traffic is not encrypted.${all} Remove \`tls: off\`, or listen on 127.0.0.1 and use a tunnel.`;
}
