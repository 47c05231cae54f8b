import type { Server as McpServer, GetPromptResult, Prompt, ReadResourceResult, Resource } from './sdk.ts';
import {
  GetPromptRequestSchema,
  ListPromptsRequestSchema,
  ListResourcesRequestSchema,
  ListResourceTemplatesRequestSchema,
  ReadResourceRequestSchema,
  RpcErrorCode,
} from './sdk.ts';
import type { ResourceTemplate, ServerNotification, ServerRequest, RequestExtra } from './sdk.ts';
import type { ErrorCode } from '../../shared/errors.ts';
import { AppError } from '../../shared/errors.ts';
import { cleanText } from './text.ts';
import type { ToolContext } from './tool.ts';

/** What a request for a resource or a prompt may use: a call without progress, and never taken back half-way. */
export type DeskContext = Omit<ToolContext, 'progress' | 'cancelReason' | 'syncWaitMs'>;

/** Everything that clients may read. Listing has no effect: clients list at their start, unasked. */
export type ResourceDesk = {
  list: (context: DeskContext) => Promise<Resource[]>;
  templates: () => ResourceTemplate[];
  /** Rejects with `noSuchResource` where nothing has that address. */
  read: (uri: string, context: DeskContext) => Promise<ReadResourceResult['contents']>;
};

/** Texts that a person picks in their client. */
export type PromptDesk = {
  list: (context: DeskContext) => Promise<Prompt[]>;
  get: (name: string, args: Record<string, string>, context: DeskContext) => Promise<GetPromptResult>;
};

export type DeskDeps = {
  /** Each is asked for at the first request for one of its things, and kept. */
  resources: () => Promise<ResourceDesk>;
  prompts: () => Promise<PromptDesk>;
  onDefect: (what: string, error: unknown) => void;
};

export type Extra = RequestExtra<ServerRequest, ServerNotification>;

/** The code that clients know for a resource that is not there, in every revision that opens with `initialize`. */
const RESOURCE_NOT_FOUND = -32002;
const MAX_ERROR = 4_000;

/** What a JSON-RPC error is made of. The SDK's own class puts its number in front of each message, once on each side. */
class RpcError extends Error {
  readonly code: number;
  readonly data: Record<string, unknown> | undefined;

  constructor(code: number, message: string, data?: Record<string, unknown>) {
    super(message);
    this.code = code;
    this.data = data;
  }
}

/** Nothing has this address. `why` says what there is instead. */
export function noSuchResource(uri: string, why: string): Error {
  const shown = cleanText(uri, 200);
  return new RpcError(RESOURCE_NOT_FOUND, `No resource has the address ${shown}. ${cleanText(why, MAX_ERROR)}`, {
    uri: shown,
  });
}

/** Answers everything about resources and prompts. */
export function serveDesks(server: McpServer, deps: DeskDeps, contextOf: (extra: Extra) => DeskContext): void {
  const told = async <T>(what: string, answer: () => Promise<T>): Promise<T> => {
    try {
      return await answer();
    } catch (error) {
      throw toRpcError(error, () => deps.onDefect(what, error));
    }
  };
  server.setRequestHandler(ListResourcesRequestSchema, (_, extra) =>
    told('resources/list', async () => ({ resources: await (await deps.resources()).list(contextOf(extra)) })),
  );
  server.setRequestHandler(ListResourceTemplatesRequestSchema, () =>
    told('resources/templates/list', async () => ({ resourceTemplates: (await deps.resources()).templates() })),
  );
  server.setRequestHandler(ReadResourceRequestSchema, ({ params }, extra) =>
    told('resources/read', async () => ({
      contents: await (await deps.resources()).read(params.uri, contextOf(extra)),
    })),
  );
  server.setRequestHandler(ListPromptsRequestSchema, (_, extra) =>
    told('prompts/list', async () => ({ prompts: await (await deps.prompts()).list(contextOf(extra)) })),
  );
  server.setRequestHandler(GetPromptRequestSchema, ({ params }, extra) =>
    told('prompts/get', async () => (await deps.prompts()).get(params.name, params.arguments ?? {}, contextOf(extra))),
  );
}

/** These are the asker's fault; any other code is ours or a host's. */
const ASKERS: ReadonlySet<ErrorCode> = new Set(['INVALID_ARGUMENT', 'PATH_DENIED', 'INPUT_INVALID']);

/** As a tool's failure: a sentence with its code. What has none is a defect: logged whole, told without its insides. */
function toRpcError(error: unknown, onDefect: () => void): Error {
  if (error instanceof RpcError) return error;
  if (error instanceof AppError && error.code !== 'INTERNAL') {
    const text = `${error.code}: ${cleanText(error.message, MAX_ERROR)}`;
    return new RpcError(rpcCodeOf(error.code), text, { code: error.code, retryable: error.retryable });
  }
  onDefect();
  const kind = error instanceof Error ? error.name : typeof error;
  return new RpcError(
    RpcErrorCode.InternalError,
    `INTERNAL: The request failed unexpectedly (${kind}). This is a defect of gantry; its log has the details.`,
  );
}

function rpcCodeOf(code: ErrorCode): number {
  if (code === 'JOB_NOT_FOUND' || code === 'INPUT_MISSING') return RESOURCE_NOT_FOUND;
  return ASKERS.has(code) ? RpcErrorCode.InvalidParams : RpcErrorCode.InternalError;
}
