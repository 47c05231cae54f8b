import type { RawData } from 'ws';
import type { z } from 'zod';
import type { AppError } from '../../shared/errors.ts';
import type { JobError } from '../../shared/job.ts';
import { APPLICATION_ERROR, Frame } from '../../shared/protocol.ts';

/**
 * A message as a frame; undefined for what is not even JSON, and for a request whose id no reply could carry: it must not
 * pass for a notification, which gets none.
 */
export function parseFrame(data: RawData): z.ZodSafeParseResult<Frame> | undefined {
  let value: unknown;
  try {
    value = JSON.parse((data as Buffer).toString()); // binaryType is nodebuffer: data is one Buffer
  } catch {
    return undefined;
  }
  const frame = Frame.safeParse(value);
  const hasId = typeof value === 'object' && value !== null && 'id' in value;
  return frame.success && hasId && !('id' in frame.data) ? undefined : frame;
}

/** The reply to a request that failed. `number` is JSON-RPC's; what it was is in the data. */
export function errorFrame(id: number, error: AppError, number: number = APPLICATION_ERROR): Frame {
  const data: JobError = { code: error.code, message: cleaned(error.message, 2_000), retryable: error.retryable };
  return { jsonrpc: '2.0', id, error: { code: number, message: data.message, data } };
}

/** Nothing that a terminal or an assistant would obey leaves the agent. */
export function cleaned(text: string, maxLength: number): string {
  return text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/g, ' ').slice(0, maxLength);
}

/** What fits into a close frame: 123 bytes. */
export function closeReason(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, '?').slice(0, 123);
}
