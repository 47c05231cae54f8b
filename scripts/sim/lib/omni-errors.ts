import { STATUS_CODES } from 'node:http';
import { EngineFailure } from './engine-failure.ts';
import { type Answer, json } from './http-server.ts';

/** A refusal with vLLM's one envelope. */
export class ApiError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** One field that pydantic did not like. */
export type Complaint = { type: string; loc: readonly string[]; msg: string; input: unknown };

/** Invalid bodies are 400, not the documented 422; the message is pydantic's text with Python's own quotes. */
export function invalid(complaints: Complaint[]): ApiError {
  const list = complaints.map(({ type, loc, msg, input }) => {
    const where = `(${loc.map((part) => `'${part}'`).join(', ')})`;
    return `  {'type': '${type}', 'loc': ${where}, 'msg': '${msg}', 'input': ${pythonText(input)}}`;
  });
  const count = complaints.length === 1 ? '1 validation error' : `${complaints.length} validation errors`;
  return new ApiError(400, `${count}:\n${list.join('\n')}`);
}

export function errorAnswer(error: unknown, work: 'generation' | 'edit'): Answer {
  if (error instanceof ApiError) return envelope(error.status, error.message);
  const text = error instanceof Error ? error.message : String(error);
  if (error instanceof EngineFailure && error.as !== 'exception') {
    const prefix = work === 'edit' ? 'img_edit' : 'img_gen';
    const id = `${prefix}-${crypto.randomUUID().replaceAll('-', '')}`;
    const where = { request_id: id, error_stage_id: 0 };
    return json(500, { error: { message: text, type: 'InternalServerError', param: null, code: 500, ...where } });
  }
  return envelope(500, `Image ${work} failed: ${text}`);
}

export function envelope(status: number, message: string): Answer {
  return json(status, { error: { message, type: STATUS_CODES[status] ?? 'Error', param: null, code: status } });
}

function pythonText(value: unknown): string {
  if (value === undefined || value === null) return 'None';
  if (typeof value === 'string') return `'${value}'`;
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  return JSON.stringify(value);
}
