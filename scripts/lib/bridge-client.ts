import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { CallToolResultSchema } from '@modelcontextprotocol/sdk/types.js';
import { resolve } from 'node:path';

export type ToolAnswer = {
  isError: boolean;
  /** The first text block: one sentence, or the error. */
  text: string;
  /** The JSON part of the answer; an empty object for an error. */
  json: Record<string, unknown>;
  /** How many images came inline, and how large their base64 is. */
  images: readonly { mimeType: string; base64Bytes: number }[];
};

export type CallOptions = { onProgress?: (message: string) => void; signal?: AbortSignal; timeoutMs?: number };

/** The real `gantry bridge` as a child on stdio, driven by the SDK's own client, as an assistant would. */
export class BridgeClient implements AsyncDisposable {
  readonly client: Client;
  readonly transport: StdioClientTransport;

  private constructor(client: Client, transport: StdioClientTransport) {
    this.client = client;
    this.transport = transport;
  }

  static async start(o: {
    /** Its bridge.yaml; without one there is none. */
    config?: string;
    /** More flags of `gantry bridge`. */
    flags?: readonly string[];
    /** Another copy of the program than that of this repository. */
    program?: string;
    home: string;
    clientName?: string;
    stderr?: 'inherit' | 'ignore';
    /** More environment for the bridge. */
    env?: Readonly<Record<string, string>>;
    /** What its command line begins with, to run it in a network of its own. */
    enter?: readonly string[];
  }) {
    const bridge = [
      process.execPath,
      o.program ?? resolve('dist/gantry.cjs'),
      'bridge',
      ...(o.config === undefined ? [] : ['--config', o.config]),
      ...(o.flags ?? []),
    ];
    const [command = '', ...args] = [...(o.enter ?? []), ...bridge];
    const transport = new StdioClientTransport({
      command,
      args,
      env: { PATH: process.env['PATH'] ?? '', HOME: o.home, XDG_STATE_HOME: `${o.home}/.local/state`, ...o.env },
      cwd: o.home,
      stderr: o.stderr ?? 'inherit',
    });
    const client = new Client({ name: o.clientName ?? 'gantry-demo', version: '1.0.0' });
    await client.connect(transport);
    return new BridgeClient(client, transport);
  }

  async call(name: string, args: Record<string, unknown> = {}, options: CallOptions = {}): Promise<ToolAnswer> {
    const { onProgress, signal, timeoutMs = 120_000 } = options;
    const result = await this.client.callTool({ name, arguments: args }, CallToolResultSchema, {
      timeout: timeoutMs,
      ...(signal && { signal }),
      ...(onProgress && { onprogress: ({ message }) => onProgress(message ?? '') }),
    });
    return toAnswer(CallToolResultSchema.parse(result));
  }

  /** Like `call`, but a tool error is thrown. */
  async ask(
    name: string,
    args: Record<string, unknown> = {},
    options: CallOptions = {},
  ): Promise<Record<string, unknown>> {
    const answer = await this.call(name, args, options);
    if (answer.isError) throw new Error(`${name}: ${answer.text}`);
    return answer.json;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client.close();
  }
}

function toAnswer(result: ReturnType<typeof CallToolResultSchema.parse>): ToolAnswer {
  const texts = result.content.flatMap((block) => (block.type === 'text' ? [block.text] : []));
  const images = result.content.flatMap((block) =>
    block.type === 'image' ? [{ mimeType: block.mimeType, base64Bytes: block.data.length }] : [],
  );
  const text = texts.join('\n');
  const isError = result.isError === true;
  return { isError, text, json: isError ? {} : (result.structuredContent ?? jsonIn(text)), images };
}

function jsonIn(text: string): Record<string, unknown> {
  const start = text.indexOf('{');
  if (start < 0) return {};
  const parsed: unknown = JSON.parse(text.slice(start));
  return typeof parsed === 'object' && parsed !== null ? { ...parsed } : {};
}
