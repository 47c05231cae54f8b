import type { BridgeConfig } from './config.ts';
import type { FleetParts } from './create-fleet.ts';
import type { Fleet } from './fleet/fleet.ts';
import type { Images } from './images/images.ts';
import type { Server } from './mcp/sdk.ts';
import { createServer } from './mcp/server.ts';
import { toolList } from './mcp/tool-list.ts';
import type { StyleBook } from './styles/style-book.ts';
import { packageVersion } from './version.ts';

/**
 * Composition root of the bridge. Nothing is opened before the first call: clients start a server more than once to look
 * at it. So the fleet and the tools, with the packages they need, are loaded when somebody asks for them.
 */
export class Bridge implements AsyncDisposable {
  readonly server: Server;
  readonly #config: BridgeConfig;
  #parts: Promise<FleetParts> | undefined;
  #images: Promise<Images> | undefined;
  #styles: StyleBook | undefined;
  #isDetached = false;

  constructor(config: BridgeConfig) {
    this.#config = config;
    this.server = createServer({
      version: packageVersion,
      listTools: toolList,
      tools: async () => (await import('./mcp/tools.ts')).TOOLS,
      resources: async () => (await import('./mcp/resources.ts')).RESOURCES,
      prompts: async () => (await import('./mcp/prompts.ts')).PROMPTS,
      settings: config,
      roots: { home: config.home, cwd: config.cwd, configured: config.roots, outputDir: config.outputDir },
      openFleet: () => this.openFleet(),
      images: () => (this.#images ??= import('./open-images.ts').then(({ openImages }) => openImages(config))),
      styles: async () => {
        this.#styles ??= new (await import('./styles/style-book.ts')).StyleBook(config.stylesDir);
        return this.#styles;
      },
      onDefect: (tool, error) => void this.#logDefect(tool, error), // its own failure has nowhere left to be told
    });
  }

  /** The fleet with its links opening and its unfinished batches resumed; the same one for every caller. */
  async openFleet(): Promise<Fleet> {
    if (this.#isDetached) throw new Error('the bridge is ending');
    this.#parts ??= this.#loadFleet();
    const { fleet } = await this.#parts;
    fleet.open();
    return fleet;
  }

  /** Withdraws what is offered and closes the links; accepted jobs run on and are fetched by the next bridge. */
  async detach(): Promise<void> {
    this.#isDetached = true;
    if (this.#parts === undefined) return;
    const { fleet } = await this.#parts;
    await fleet.detach();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.detach();
    const parts = await this.#parts;
    await parts?.fleet[Symbol.asyncDispose]();
  }

  async #loadFleet(): Promise<FleetParts> {
    const { createFleet } = await import('./create-fleet.ts');
    return createFleet(this.#config, { clientName: () => this.server.getClientVersion()?.name ?? 'gantry' });
  }

  async #logDefect(tool: string, error: unknown): Promise<void> {
    const { createLog } = await import('../shared/log.ts');
    const log = (await this.#parts)?.log ?? createLog({ name: 'gantry', to: 'stderr', level: this.#config.logLevel });
    log.error({ event: 'tool-defect', tool, err: error });
  }
}
