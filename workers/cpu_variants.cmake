
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

