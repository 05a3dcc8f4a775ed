"""Pieces of optimized modules as the TPU compiler writes them, cut down to what a test is about."""

# ruff: noqa: E501

SCAN_WITHOUT_TRIP_COUNT = """\
HloModule jit_step, is_scheduled=true, num_partitions=16

%fused_add (param_0: s32[], param_1: s32[]) -> s32[] {
  %param_0 = s32[]{:T(128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  ROOT %add.1 = s32[]{:T(128)} add(%param_0, %param_1)
}

%body (state: (s32[], f32[8,128], s32[], s32[])) -> (s32[], f32[8,128], s32[], s32[]) {
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, s32[]{:T(128)}, /*index=3*/s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %step = s32[]{:T(128)} get-tuple-element(%state), index=2
  %bound = s32[]{:T(128)} get-tuple-element(%state), index=3
  %next = s32[]{:T(128)} fusion(%i, %step), kind=kLoop, calls=%fused_add
  %dot.1 = f32[8,128]{1,0:T(8,128)} dot(%x, %x), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  ROOT %tuple.1 = (s32[], f32[8,128], s32[], s32[]) tuple(%next, %dot.1, %step, %bound)
}

%condition (state.2: (s32[], f32[8,128], s32[], s32[])) -> pred[] {
  %state.2 = (s32[], f32[8,128], s32[], s32[]) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  %bound.2 = s32[]{:T(128)} get-tuple-element(%state.2), index=3
  %not_done = pred[]{:T(512)} custom-call(), custom_call_target="Whatever"
  %lt.1 = pred[]{:T(512)} compare(%i.2, %bound.2), direction=LT
  ROOT %and.1 = pred[]{:T(512)} and(%lt.1, %not_done)
}

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %first = s32[]{:T(128)} constant(3)
  %first_copy = s32[]{:T(128)} copy(%first)
  %two = s32[]{:T(128)} constant(2)
  %eleven = s32[]{:T(128)} constant(11)
  %tuple.2 = (s32[], f32[8,128], s32[], s32[]) tuple(%first_copy, %p, %two, %eleven)
  %while.1 = (s32[], f32[8,128], s32[], s32[]) while(%tuple.2), condition=%condition, body=%body
  ROOT %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""
"""i = 3; while i < 11 and …: i += 2: four rounds, with bound and step in the state, as the compiler sinks constants."""

ASYNC_ALL_GATHER = """\
HloModule jit_step, num_partitions=16

%begin (param_0: bf16[256,4096]) -> (bf16[256,4096], bf16[4096,4096], u32[]) {
  %param_0 = bf16[256,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[4096,4096]{1,0} all-gather(%param_0), channel_id=7, replica_groups=mesh['a'=16] {'a'}, dimensions={0}
  ROOT %start = (bf16[256,4096], bf16[4096,4096], u32[]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%end (param_1: bf16[256,4096], param_2: bf16[4096,4096]) -> bf16[4096,4096] {
  %param_1 = bf16[256,4096]{1,0} parameter(0)
  %param_2 = bf16[4096,4096]{1,0} parameter(1)
  %all-gather.2 = bf16[4096,4096]{1,0} all-gather(%param_1), channel_id=7, replica_groups=mesh['a'=16] {'a'}, dimensions={0}
  ROOT %done = bf16[4096,4096]{1,0} custom-call(%param_1, %param_2, %all-gather.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: bf16[256,4096]) -> bf16[4096,4096] {
  %p = bf16[256,4096]{1,0} parameter(0)
  %f = (bf16[256,4096]{1,0}, bf16[4096,4096]{1,0}, u32[]) fusion(%p), kind=kCustom, calls=%begin
  %whole = bf16[4096,4096]{1,0} get-tuple-element(%f), index=1
  ROOT %g = bf16[4096,4096]{1,0} fusion(%p, %whole), kind=kCustom, calls=%end
}
"""
"""One collective, written once where it begins and once where it ends."""

REDUCE_SCATTER_AS_ALL_REDUCE = """\
HloModule jit_step, num_partitions=16

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter (g: f32[4096,256], at: s32[]) -> f32[256,256] {
  %g = f32[4096,256]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %all-reduce.1 = f32[4096,256]{1,0} all-reduce(%g), channel_id=3, replica_groups=[1,16]<=[16], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = f32[256,256]{1,0} dynamic-slice(%all-reduce.1, %at, %zero), dynamic_slice_sizes={256,256}
}

ENTRY %main (p: f32[4096,256], i: s32[]) -> f32[256,256] {
  %p = f32[4096,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = f32[256,256]{1,0} fusion(%p, %i), kind=kCustom, calls=%all-reduce-scatter
}
"""
"""Each device keeps a sixteenth of the sum."""

BATCHED_PRODUCT_AS_CONVOLUTION = """\
HloModule jit_step

ENTRY %main (w: f32[32,2666,2666], v: bf16[32,128,2666]) -> f32[32,2666,128] {
  %w = f32[32,2666,2666]{2,1,0} parameter(0)
  %v = f32[32,2666,128]{2,1,0} parameter(1)
  ROOT %convolution.1 = f32[32,2666,128]{2,1,0} convolution(%w, %v), window={size=32 stride=31 lhs_dilate=32}, dim_labels=0bf_0io->0bf
}
"""
"""32 products of [2666, 2666] and [2666, 128]."""

KERNELS = """\
HloModule jit_step

ENTRY %main (q: bf16[8,512,128]) -> bf16[8,512,128] {{
  %q = bf16[8,512,128]{{2,1,0}} parameter(0)
  ROOT %k = bf16[8,512,128]{{2,1,0}} custom-call(%q, %q), custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{}}"
}}}}, backend_config={{"custom_call_config":{{"body":"TUw="{estimate}}}}}
}}
"""
"""A Pallas kernel, with line breaks in its metadata; its author may or may not have estimated its cost."""
