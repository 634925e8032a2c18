"""What is changed in the pinned llama.cpp before it is built, each with its reason. Values only."""

from dataclasses import dataclass
from pathlib import Path

from unidiff.patch import PatchSet


@dataclass(frozen=True)
class Edit:
    """One change to the source: in the file `path` of its tree `before`, which is there once, becomes `after`."""

    path: str
    before: str
    after: str


def read_patch(text: str) -> tuple[Edit, ...]:
    """The changes of a unified diff, one for each of its hunks; what stands before the first file is for readers."""
    return tuple(
        Edit(
            file.path,
            "".join(line.value for line in hunk if not line.is_added),
            "".join(line.value for line in hunk if not line.is_removed),
        )
        for file in PatchSet(text)
        for hunk in file
    )


HASHED_ABOVE_BYTES = 64 * 1024
"""A head asks a worker for larger weights by their hash before it sends them.

llama.cpp has 10 MiB here (`HASH_THRESHOLD` in `ggml-rpc.cpp`), which all attention weights of small and middling models
are below: a sixth of a 1.2 B model then crosses the network at every start. Asking costs one round trip per tensor, as
much as 64 KiB take at 100 Mbit/s and 5 ms.
"""

_RPC = "ggml/src/ggml-rpc/ggml-rpc.cpp"
_VULKAN = "ggml/src/ggml-vulkan/ggml-vulkan.cpp"
_VARIANTS = "\nggml_add_backend(CPU)\n"
_INSTANCE = "    vk::InstanceCreateInfo instance_create_info(vk::InstanceCreateFlags{}, &app_info, layers, extensions"

LEFT_OUT_WHERE_UNKNOWN = """
# From here to "end of what meshctl adds": CPU libraries that the compiler at hand cannot make are left out, instead of
# failing the whole build (gcc 10 knows neither AVX-VNNI nor AMX, gcc 13 no SME). The engine takes the best of those
# that are there, so only processors with these instructions lose by it.
set(MESHCTL_x86_AVX512      -mavx512f)
set(MESHCTL_x86_AVX512_VBMI -mavx512vbmi)
set(MESHCTL_x86_AVX512_VNNI -mavx512vnni)
set(MESHCTL_x86_AVX512_BF16 -mavx512bf16)
set(MESHCTL_x86_AVX_VNNI    -mavxvnni)
set(MESHCTL_x86_AMX_TILE    -mamx-tile)
set(MESHCTL_x86_AMX_INT8    -mamx-int8)
set(MESHCTL_x86_AMX_BF16    -mamx-bf16)
set(MESHCTL_ARM_DOTPROD                -march=armv8.2-a+dotprod)
set(MESHCTL_ARM_FP16_VECTOR_ARITHMETIC -march=armv8.2-a+fp16)
set(MESHCTL_ARM_SVE                    -march=armv8.2-a+sve)
set(MESHCTL_ARM_NOSVE                  -march=armv8.2-a+nosve)
set(MESHCTL_ARM_MATMUL_INT8            -march=armv8.6-a+i8mm)
set(MESHCTL_ARM_SVE2                   -march=armv8.6-a+sve2)
set(MESHCTL_ARM_SME                    -march=armv9.2-a+sme)

function(ggml_add_cpu_backend_variant tag_name)
    foreach (feature ${ARGN})
        set(flag "${MESHCTL_${GGML_SYSTEM_ARCH}_${feature}}")
        if (NOT flag STREQUAL "")
            check_cxx_compiler_flag("${flag}" MESHCTL_TAKES_${feature})
            if (NOT MESHCTL_TAKES_${feature})
                message(STATUS "Left out: the CPU library ${tag_name}, since the compiler does not take ${flag}")
                return()
            endif()
        endif()
    endforeach()
    _ggml_add_cpu_backend_variant(${tag_name} ${ARGN})
endfunction()
# end of what meshctl adds

"""
"""Comes before llama.cpp's list of these libraries, which fails as a whole where one of them cannot be made."""

JOINED_RUNS = """    /* .set_tensor_2d   = */ [](ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data,
            size_t offset, size_t size, size_t n_copies, size_t stride_tensor, size_t stride_data) {
        const bool joined = stride_tensor == size;
        std::vector<uint8_t> all(joined ? n_copies * size : 0);
        for (size_t i = 0; i < n_copies; i++) {
            const uint8_t * run = (const uint8_t *) data + i * stride_data;
            if (joined) {
                memcpy(all.data() + i * size, run, size);
            } else {
                ggml_backend_rpc_buffer_set_tensor(buffer, tensor, run, offset + i * stride_tensor, size);
            }
        }
        if (joined) {
            ggml_backend_rpc_buffer_set_tensor(buffer, tensor, all.data(), offset, all.size());
        }
    },
"""
"""A part of a tensor that is cut within its rows goes to a worker as one block with one hash, not one row after
the other: of a model of three layers some twenty messages to each device instead of six thousand."""

EDITS = (
    Edit(
        _RPC,
        "const size_t HASH_THRESHOLD = 10 * 1024 * 1024;",
        f"const size_t HASH_THRESHOLD = {HASHED_ABOVE_BYTES};",
    ),
    # A worker keeps nothing by itself: it would write in place, and others would load half a tensor unread.
    Edit(_RPC, "if (cache_dir && cache_flag) {", "if (false && cache_flag) {"),
    Edit(_RPC, "    /* .set_tensor_2d   = */ NULL,\n", JOINED_RUNS),
    # Mode `tensor`: an output layer that is the input's weights again is cut, too. llama.cpp has all of it on every
    # device, which takes each as long as one alone: in small models with many words a third of all weights.
    Edit(
        "src/llama-model.cpp",
        'pattern_output_weight("output\\\\.weight");',
        'pattern_output_weight("(output|token_embd)\\\\.weight");',
    ),
    *read_patch(Path(__file__).with_name("rpc-ahead.patch").read_text(encoding="utf-8")),
    Edit("ggml/src/CMakeLists.txt", _VARIANTS, f"{_VARIANTS}{LEFT_OUT_WHERE_UNKNOWN}"),
    # Vulkan headers before 1.3.272 (Debian 12 has 1.3.239) lack the settings of layers, used for debugging only.
    Edit(
        _VULKAN,
        "    VkBool32 enable_best_practice = layer_settings;\n",
        "#ifdef VK_EXT_layer_settings\n    VkBool32 enable_best_practice = layer_settings;\n",
    ),
    Edit(
        _VULKAN,
        f"{_INSTANCE}, &layer_setting_info);\n",
        f"{_INSTANCE}, &layer_setting_info);\n#else\n{_INSTANCE});\n#endif\n",
    ),
)
