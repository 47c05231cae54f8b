import { mkdir, stat } from 'node:fs/promises';
import { pause } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import { EXIT } from '../../shared/exit-codes.ts';
import type { Log } from '../../shared/log.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import type { WeightsState } from '../weights/weights.ts';
import { Weights } from '../weights/weights.ts';
import type { DownloadProblem } from '../weights/weights-failure.ts';
import { sourceOf } from '../weights/weights-source.ts';
import { downloadText } from '../weights/weights-text.ts';

export type PullOptions = {
  models: readonly ConfiguredModel[];
  stateDir: string;
  logDir: string;
  times: { stallMs: number; retryFirstMs: number };
  isJson: boolean;
  /** A terminal keeps one line; anything else gets a line from time to time. */
  isTerminal: boolean;
  log: Log;
  say: (text: string) => void;
  print: (text: string) => void;
  signal: AbortSignal;
};

/** What a script can do about it. */
const EXIT_OF: Record<DownloadProblem, number> = {
  denied: EXIT.denied,
  'not-found': EXIT.config,
  'disk-full': EXIT.ioError,
  network: EXIT.unavailable,
  stalled: EXIT.tryLater,
  'no-program': EXIT.unavailable,
  failed: EXIT.unavailable,
};
const TERMINAL_EVERY_MS = 250;
const LINE_EVERY_MS = 10_000;

/**
 * `gantry-agent pull MODEL`: downloads the weights of a configured model in the foreground, with a line of progress on
 * stderr. Works beside a running daemon, which sees the result. Returns the exit code; Ctrl-C keeps what has arrived.
 */
export async function pullWeights(name: string, o: PullOptions): Promise<number> {
  const model = modelNamed(name, o.models);
  if (model === undefined) {
    const known = o.models.map(({ alias }) => alias).join(', ') || 'none';
    return ended(
      o,
      { model: name, problem: 'not-found', message: `No model ${name} is in agent.yaml. Configured: ${known}.` },
      EXIT_OF['not-found'],
    );
  }
  const source = sourceOf(model);
  const facts = {
    model: model.alias,
    ...(source && { repository: source.repository, revision: source.revision ?? null, cache: source.cacheDir }),
  };
  if (source === undefined) {
    return ended(
      o,
      {
        ...facts,
        message: `gantry downloads nothing for ${model.alias}: ${whyNoDownload(model)}.`,
      },
      0,
    );
  }
  await mkdir(o.stateDir, { recursive: true });
  if ((await stat(o.stateDir)).uid !== process.getuid?.()) {
    const message = `${o.stateDir} belongs to another user, and so does the cache that the agent reads. Run it as that user: sudo -u "$(stat -c %U ${o.stateDir})" gantry-agent pull ${model.alias}`;
    return ended(o, { ...facts, problem: 'denied', message }, EXIT_OF.denied);
  }
  await using weights = new Weights({ ...o, ...o.times, onChange: () => undefined, onProgress: () => undefined });
  const wasThere = weights.stateOf(model).kind === 'present';
  try {
    await shownUntilSettled(weights.pull(model, o.signal, { isAsked: true }), {
      state: () => weights.stateOf(model),
      ...o,
    });
  } catch (error) {
    o.signal.throwIfAborted();
    if (!(error instanceof AppError)) throw error;
    const state = weights.stateOf(model);
    const problem = state.kind === 'failed' ? state.problem : 'failed';
    return ended(o, { ...facts, problem, message: error.message }, EXIT_OF[problem]);
  }
  if (weights.isLeftToEngine(model)) {
    const message =
      `Nothing here can tell that the weights of ${source.repository} are complete: there is no downloader beside the engine or on ` +
      'the PATH, or it did not reach the hub. Install huggingface_hub in the environment of the engine, or set `download` in agent.yaml.';
    return ended(o, { ...facts, problem: 'no-program', message }, EXIT_OF['no-program']);
  }
  return ended(
    o,
    { ...facts, message: `The weights of ${source.repository} ${wasThere ? 'were there already' : 'are complete'}.` },
    0,
  );
}

type Ended = {
  model: string;
  repository?: string;
  revision?: string | null;
  cache?: string;
  problem?: DownloadProblem;
  message: string;
};

/** A script reads stdout, a person either. */
function ended({ isJson, print, say }: PullOptions, result: Ended, exitCode: number): number {
  if (isJson) print(JSON.stringify({ schema: 1, ok: exitCode === 0, ...result }, undefined, 2));
  else if (exitCode === 0) print(result.message);
  else say(`gantry-agent: ${result.message}\n`);
  return exitCode;
}

async function shownUntilSettled(
  pulling: Promise<void>,
  { state, isTerminal, say, signal }: PullOptions & { state: () => WeightsState },
): Promise<void> {
  const settled = new AbortController();
  const done = pulling.finally(() => settled.abort());
  let last = '';
  while (!settled.signal.aborted && !signal.aborted) {
    const now = state();
    const text = now.kind === 'downloading' || now.kind === 'queued' ? (downloadText(now) ?? '') : '';
    if (isTerminal) say(`\r${text.padEnd(last.length)}`);
    else if (text !== last && text !== '') say(`${text}\n`);
    last = text;
    await pause(isTerminal || last === '' ? TERMINAL_EVERY_MS : LINE_EVERY_MS, settled.signal);
  }
  if (isTerminal) say(`\r${' '.repeat(last.length)}\r`);
  await done;
}

/** In which of the cases of `sourceOf` a model is. */
function whyNoDownload({ engine, launch }: ConfiguredModel): string {
  if (launch.kind === 'attached') return 'its server is started by somebody else';
  if (engine === 'step1x-edit') return 'Step1X-Edit reads the files that its environment names';
  if (launch.download === 'none')
    return 'agent.yaml says `download: none`, so the engine does it or the files are there';
  return 'its weights are a path, or HF_HUB_OFFLINE is set in its `env`';
}

/** By alias, by id, or by the repository alone. */
function modelNamed(name: string, models: readonly ConfiguredModel[]): ConfiguredModel | undefined {
  return (
    models.find(({ alias }) => alias === name) ??
    models.find(({ id }) => id === name) ??
    models.find(({ id }) => id.replace(/@[^/@]+$/, '') === name)
  );
}
