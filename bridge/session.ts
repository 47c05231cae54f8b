import type { Answer, AskOptions } from './cli/ask.ts';
import { Interrupts } from './cli/interrupts.ts';
import type { Screen, ScreenFlags } from './cli/screen.ts';
import { openScreen } from './cli/screen.ts';
import type { BridgeConfig, BridgeFlags } from './config.ts';
import { colourWish, loadConfig } from './config.ts';
import type { Setting } from './config-origins.ts';
import { settingsOf } from './config-origins.ts';
import { createFleet } from './create-fleet.ts';
import type { Fleet } from './fleet/fleet.ts';
import type { CallToolResult } from './mcp/sdk.ts';
import type { ToolContext } from './mcp/tool.ts';
import { findRoots } from './output/roots.ts';
import { packageVersion } from './version.ts';

export type SessionFlags = BridgeFlags & ScreenFlags & { verbose?: boolean };

/** How long the links may take; a host that is not there by then is shown as such. */
const SETTLE_MS = 5_000;

/**
 * Composition root of a command: its settings, its screen, its fleet, and the tools, which it calls as an assistant does.
 * Nothing is opened before it is needed.
 */
export class Session implements AsyncDisposable {
  readonly version = packageVersion;
  readonly flags: SessionFlags;
  readonly config: BridgeConfig;
  readonly screen: Screen;
  readonly #interrupts = new Interrupts();
  readonly #logLevel: BridgeConfig['logLevel'];
  #fleet: Fleet | undefined;

  constructor(flags: SessionFlags) {
    this.flags = flags;
    this.screen = openScreen(flags, colourWish());
    this.config = loadConfig(flags);
    // A person reads what a command says itself; the log would say it twice.
    this.#logLevel = flags.verbose === true ? this.config.logLevel : 'error';
  }

  /** Aborts when the command shall end, with an `Interrupted`. */
  get signal(): AbortSignal {
    return this.#interrupts.signal;
  }

  /** Every setting with where it comes from. */
  get settings(): Setting[] {
    return settingsOf(this.config, this.flags);
  }

  /** The fleet as the records on this machine tell it: no link is opened. */
  get records(): Fleet {
    this.#fleet ??= createFleet({ ...this.config, logLevel: this.#logLevel }, { clientName: () => 'gantry' }).fleet;
    return this.#fleet;
  }

  /** The fleet once each link is up or has failed. Unfinished batches are not taken over. */
  async hosts(): Promise<Fleet> {
    this.records.connect();
    await this.records.settled({ signal: this.signal, withinMs: SETTLE_MS });
    return this.records;
  }

  /** As `hosts`, and from now on this process takes its part in the work: batches that nobody works on, too. */
  async work(): Promise<Fleet> {
    this.records.open();
    return await this.hosts();
  }

  async ask(name: string, args: Record<string, unknown>, options: AskOptions): Promise<Answer> {
    const { TOOLS } = await import('./mcp/tools.ts');
    const tool = TOOLS.find((one) => one.name === name);
    if (tool === undefined) throw new Error(`there is no tool ${name}`);
    return answerOf(await tool.call(args, this.#context(options)));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#fleet?.[Symbol.asyncDispose]();
    this.#interrupts[Symbol.dispose]();
  }

  /** What a tool sees of a terminal: one that waits without limit, and has no use for previews. */
  #context({ reach, places = [], onDoing, onBatch }: AskOptions): ToolContext {
    const { home, cwd, roots, outputDir } = this.config;
    return {
      signal: this.signal,
      cancelReason: () => this.#interrupts.cause,
      progress: (look) => onDoing?.(look),
      ...(onBatch !== undefined && { onBatch }),
      client: { name: 'gantry', version: this.version },
      syncWaitMs: Infinity,
      settings: { ...this.config, preview: 'none' },
      roots: () => findRoots({ home, cwd, configured: roots, outputDir, offered: places }),
      images: async () => (await import('./open-images.ts')).openImages(this.config),
      styles: async () => new (await import('./styles/style-book.ts')).StyleBook(this.config.stylesDir),
      fleet: async () => (reach === 'records' ? this.records : reach === 'hosts' ? this.hosts() : this.work()),
    };
  }
}

/** A tool that makes images answers a sentence and JSON below it, every other one JSON. */
function answerOf({ content, structuredContent }: CallToolResult): Answer {
  if (structuredContent !== undefined) return { sentence: '', json: structuredContent };
  const text = content.flatMap((block) => (block.type === 'text' ? [block.text] : [])).join('\n');
  const json = text.indexOf('\n{');
  if (json < 0) throw new Error('the tool answered no JSON');
  return { sentence: text.slice(0, json), json: JSON.parse(text.slice(json)) as Answer['json'] }; // JSON.parse is `any`
}
