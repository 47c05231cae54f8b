import '../../bridge/stdout-guard.ts';
// Before the SDK: in a bundle of CommonJS its schemas find zod only half made otherwise.
import { conformanceTools, listed } from './tools.ts';
import { tmpdir } from 'node:os';
import type { Server } from '../../bridge/mcp/sdk.ts';
import { createServer } from '../../bridge/mcp/server.ts';
import { serveStdio } from '../../bridge/mcp/stdio.ts';
import { listing } from '../../bridge/mcp/tool-list.ts';
import { addUnusedFeatures } from './client-features.ts';
import { conformancePrompts, conformanceResources } from './desks.ts';

// Gantry's MCP server and its life on stdio, with the things that the conformance suite asks for instead of the fleet's.

const tools = conformanceTools(() => server);

const server: Server = createServer({
  version: '0.0.0',
  listTools: async () => listed(tools.map(listing)),
  tools: async () => tools,
  resources: async () => conformanceResources,
  prompts: async () => conformancePrompts,
  settings: {
    outputDir: undefined,
    defaultModel: undefined,
    defaultEditModel: undefined,
    preview: 'inline',
    syncWaitMs: undefined,
  },
  roots: { home: tmpdir(), cwd: tmpdir(), configured: undefined, outputDir: undefined },
  // The fixtures work on no host, image or style.
  openFleet: () => new Promise(() => undefined),
  images: () => new Promise(() => undefined),
  styles: () => new Promise(() => undefined),
  onDefect: () => undefined, // one of the tools fails on purpose
});
addUnusedFeatures(server);
void serve();

async function serve(): Promise<void> {
  await serveStdio(server, { detach: () => Promise.resolve() });
  process.exit(0);
}
